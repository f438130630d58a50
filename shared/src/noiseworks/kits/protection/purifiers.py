"""What an attacker does to get rid of a protection: uint8 pictures in and out, and the worst of them counts."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from PIL import Image, ImageFilter
from scipy import ndimage

if TYPE_CHECKING:
    from noiseworks.kits.protection.hosts import Host
    from torch import Tensor


def _recoded(pixels: np.ndarray, kind: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def jpeg(pixels: np.ndarray, quality: int = 75) -> np.ndarray:
    """Return a picture [H, W, 3] after JPEG with 4:2:0 colour."""
    return _recoded(pixels, "JPEG", quality)


def webp(pixels: np.ndarray, quality: int = 80) -> np.ndarray:
    """Return a picture after WebP."""
    return _recoded(pixels, "WEBP", quality)


def crop_resize(pixels: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Return a picture whose border is cut so that `share` of each side remains, enlarged to its old size."""
    height, width = pixels.shape[:2]
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    if top == left == 0:
        return pixels
    inner = Image.fromarray(pixels[top : height - top, left : width - left])
    return np.asarray(inner.resize((width, height), Image.Resampling.BICUBIC))


def resize(pixels: np.ndarray, factor: float = 0.5) -> np.ndarray:
    """Return a picture shrunk by a factor (area average) and enlarged again (bicubic)."""
    height, width = pixels.shape[:2]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    if small == (width, height):
        return pixels
    shrunk = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC))


def blur(pixels: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Return a picture under a Gaussian of `sigma` pixels."""
    smooth = ndimage.gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0), mode="nearest")
    return _rounded(smooth)


def noise(pixels: np.ndarray, sigma: float = 8.0, seed: int = 0) -> np.ndarray:
    """Return a picture with Gaussian noise of `sigma` levels."""
    added = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return _rounded(pixels + added)


def median(pixels: np.ndarray) -> np.ndarray:
    """Return a picture under a 3x3 median."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)))


def bits(pixels: np.ndarray, count: int = 4) -> np.ndarray:
    """Return a picture with `count` bits a channel, at the nearest level."""
    top = 2**count - 1
    return _rounded(np.round(pixels / 255 * top) / top * 255)


def total_variation(pixels: np.ndarray, weight: float = 0.1, iterations: int = 50) -> np.ndarray:
    """Return a picture denoised under total variation, by Chambolle's projections (2004), channel by channel."""
    image = pixels.astype(np.float64) / 255
    dual = np.zeros((2, *image.shape))
    for _ in range(iterations):
        slope = _gradient(_divergence(dual) - image / weight)
        length = np.sqrt((slope**2).sum(axis=0))
        dual = (dual + 0.125 * slope) / (1 + 0.125 * length)
    return _rounded((image - weight * _divergence(dual)) * 255)


def _gradient(image: np.ndarray) -> np.ndarray:
    slope = np.zeros((2, *image.shape))
    slope[0, :-1], slope[1, :, :-1] = np.diff(image, axis=0), np.diff(image, axis=1)
    return slope


def _divergence(field: np.ndarray) -> np.ndarray:
    rows, columns = field
    rows = np.concatenate([rows[:1], np.diff(rows[:-1], axis=0), -rows[-2:-1]])
    columns = np.concatenate([columns[:, :1], np.diff(columns[:, :-1], axis=1), -columns[:, -2:-1]], axis=1)
    return rows + columns


def adverse_cleaner(pixels: np.ndarray) -> np.ndarray:
    """Return a picture after AdverseCleaner: 64 bilateral filters, then 4 filters guided by the input.

    Bilateral: diameter 5, both sigmas 8 levels. Guided: radius 4, eps 16 (levels squared), colours as the guide.
    """
    image = pixels.astype(np.float32)
    smooth = image
    for _ in range(64):
        smooth = _bilateral(smooth)
    smooth = smooth.astype(np.float64)
    guide = pixels.astype(np.float64)
    for _ in range(4):
        smooth = _guided(guide, smooth)
    return _rounded(smooth)


def _bilateral(image: np.ndarray, radius: int = 2, color: float = 8.0, space: float = 8.0) -> np.ndarray:
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    height, width = image.shape[:2]
    total, weights = np.zeros_like(image), np.zeros((height, width, 1), image.dtype)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx > radius * radius:
                continue
            near = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            apart = np.abs(near - image).sum(axis=2, keepdims=True)
            weight = np.exp(-(dy * dy + dx * dx) / (2 * space**2) - apart**2 / (2 * color**2))
            total, weights = total + weight * near, weights + weight
    return total / weights


def _guided(guide: np.ndarray, image: np.ndarray, radius: int = 4, eps: float = 16.0) -> np.ndarray:
    def mean(values: np.ndarray) -> np.ndarray:
        side = 2 * radius + 1
        return ndimage.uniform_filter(values, (side, side, *[1] * (values.ndim - 2)), mode="reflect")

    average, wanted = mean(guide), mean(image)
    spread = mean(guide[..., :, None] * guide[..., None, :]) - average[..., :, None] * average[..., None, :]
    joint = mean(guide[..., :, None] * image[..., None, :]) - average[..., :, None] * wanted[..., None, :]
    slope = np.linalg.solve(spread + eps * np.eye(3), joint)
    offset = wanted - np.einsum("hwc,hwcd->hwd", average, slope)
    return np.einsum("hwc,hwcd->hwd", guide, mean(slope)) + mean(offset)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def noisy_upscale(pixels: np.ndarray, sigma: float = 8.0) -> np.ndarray:
    """Return a picture with Gaussian noise of `sigma` levels, enlarged twice (bicubic) and shrunk back (area)."""
    height, width = pixels.shape[:2]
    large = Image.fromarray(noise(pixels, sigma)).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    return np.asarray(large.resize((width, height), Image.Resampling.BOX))


PURIFIERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda pixels: pixels,
    "jpeg-75": jpeg,
    "jpeg-50": lambda pixels: jpeg(pixels, 50),
    "webp-80": webp,
    "crop-resize": crop_resize,
    "resize": resize,
    "blur": blur,
    "noise": noise,
    "noisy-upscale": noisy_upscale,
    "median": median,
    "bits-4": bits,
    "total-variation": total_variation,
    "adverse-cleaner": adverse_cleaner,
}
# Those that take a number after a dash: smallest, largest, and whether it is whole.
NUMBERED: Mapping[str, tuple[Callable[..., np.ndarray], float, float, bool]] = {
    "jpeg": (jpeg, 1, 100, True),
    "webp": (webp, 1, 100, True),
    "crop-resize": (crop_resize, 0.1, 1, False),
    "resize": (resize, 0.05, 1, False),
    "blur": (blur, 0, 20, False),
    "noise": (noise, 0, 255, False),
    "noisy-upscale": (noisy_upscale, 0, 255, False),
    "bits": (bits, 1, 8, True),
    "total-variation": (total_variation, 0.001, 10, False),
}


def purifier(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return what a name stands for.

    Args:
        name: One of `PURIFIERS`, one of `NUMBERED` with a number (`jpeg-65`, `resize-0.75`), or a chain of them joined
            by plus signs (`noise-4+resize+jpeg-75`).

    Raises:
        InputError: When a name is unknown, or a number out of range.
    """
    steps = [_step(part.strip()) for part in name.split("+")]

    def run(pixels: np.ndarray) -> np.ndarray:
        for step in steps:
            pixels = step(pixels)
        return pixels

    return run


def check_purifiers(names: Iterable[str]) -> None:
    """Refuse names that `purifier` does not know, before anything is edited.

    Raises:
        InputError: Naming the first.
    """
    for name in names:
        purifier(name)


def _step(name: str) -> Callable[[np.ndarray], np.ndarray]:
    base, _, number = name.rpartition("-")
    if name not in PURIFIERS and base in NUMBERED:
        function, low, high, whole = NUMBERED[base]
        try:
            value = int(number) if whole else float(number)
        except ValueError:
            value = np.nan
        if not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise InputError(f"{base} takes {kind} from {low:g} to {high:g} after the dash, got {name!r}")
        return lambda pixels: function(pixels, value)
    check_choice("purifier", name, (*PURIFIERS, *(f"{base}-<number>" for base in NUMBERED)))
    return PURIFIERS[name]


def purify(name: str, pixels: np.ndarray) -> np.ndarray:
    """Return pictures uint8 [n, H, W, 3] after a purifier, by the name that `purifier` takes.

    Raises:
        InputError: When the name is unknown.
    """
    run = purifier(name)
    return np.stack([run(one) for one in pixels])


def follow(name: str, masks: "Tensor") -> "Tensor":
    """Return masks [n, 1, H, W] of 0 and 1 moved as a purifier moves what lies under them: cropping does."""
    from noiseworks.kits.protection.files import to_tensor

    for part in name.split("+"):
        if part.strip().startswith("crop-resize"):
            drawn = masks.permute(0, 2, 3, 1).repeat(1, 1, 1, 3).mul(255).byte().cpu().numpy()
            masks = to_tensor(purify(part.strip(), drawn))[:, :1].round()
    return masks


def diffusion_purified(host: "Host", pixels: np.ndarray, share: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return pictures that were noised to `share` of the schedule and denoised by a model for text, DDIM, 100 steps.

    Source: DiffPure, arXiv 2205.07460, in the latents of the model.

    Args:
        host: A host that does not inpaint.
        pixels: uint8 [n, H, W, 3].
        share: How far along the schedule the noise goes.
        seed: Picture i has noise of seed + i.
    """
    import torch
    from noiseworks.kits.protection.editors import denoise_from
    from noiseworks.kits.protection.files import to_tensor

    images = to_tensor(pixels)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(images))]
    with torch.no_grad():
        cleaned = denoise_from(host, images, share, generators)
    return _rounded(cleaned.permute(0, 2, 3, 1).numpy() * 255)
