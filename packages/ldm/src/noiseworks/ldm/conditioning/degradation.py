"""Low-resolution images for training super-resolution: bicubic, or BSRGAN's degradation (section 4.3.1).

BSR applies blur, noise and JPEG compression in a random order before and after down-sampling, so that a model
trained with it copes with images of unknown origin. Source: Zhang et al. 2021, "Designing a practical
degradation model", as the paper's super-resolution uses it ("BSR-light" in the authors' code).
"""

import io

import numpy as np
import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

KINDS = ("bicubic", "bsr")


def low_resolution(
    images: Tensor, factor: int, kind: str = "bicubic", seeds: list[int] | None = None
) -> Tensor:
    """Return images `[B, 3, H / factor, W / factor]` in [-1, 1].

    Args:
        images: `[B, 3, H, W]` in [-1, 1].
        factor: Down-sampling factor.
        kind: `"bicubic"` (antialiased), or `"bsr"`.
        seeds: One per image, for `"bsr"`: the result depends on image and seed alone.

    Raises:
        InputError: When a side is no multiple of `factor`, or seeds are missing.
    """
    check_choice("degradation", kind, KINDS)
    if images.shape[-2] % factor or images.shape[-1] % factor:
        raise InputError(f"the images' sides must be multiples of {factor}, got {tuple(images.shape[-2:])}")
    if kind == "bicubic":
        return _resize(images, 1 / factor, "bicubic").clamp(-1, 1)
    if seeds is None or len(seeds) != len(images):
        raise InputError("bsr needs one seed per image")
    return torch.cat(
        [
            bsr_degrade(image[None], factor, np.random.default_rng(seed))
            for image, seed in zip(images, seeds, strict=True)
        ]
    )


def bsr_degrade(image: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
    """Return one degraded image `[1, 3, H / factor, W / factor]` in [-1, 1].

    Blur (isotropic and anisotropic), down-sampling, noise and JPEG are shuffled; a last JPEG follows.

    Args:
        image: `[1, 3, H, W]` in [-1, 1].
        factor: Down-sampling factor.
        rng: Source of every random choice.
    """
    height, width = image.shape[-2] // factor, image.shape[-1] // factor
    steps = ["blur_round", "blur_long", "down", "noise", "jpeg"]
    for step in rng.permutation(steps):
        if step == "blur_round":
            sigma = rng.uniform(0.1, 2.8)
            image = gaussian_blur(image, sigma, sigma, 0.0)
        elif step == "blur_long":
            image = gaussian_blur(image, *rng.uniform(0.5, 3.0, 2), rng.uniform(0, np.pi))
        elif step == "down":
            image = _shrink(image, height, width, rng)
        elif step == "noise":
            image = add_gaussian_noise(image, rng)
        elif rng.random() < 0.9:
            image = jpeg(image, int(rng.integers(30, 96)))
    return jpeg(image, int(rng.integers(30, 96)))


def gaussian_blur(image: Tensor, sigma_1: float, sigma_2: float, angle: float) -> Tensor:
    """Return the image blurred by a Gaussian with the given deviations (pixels) along two rotated axes."""
    radius = min(int(np.ceil(3 * max(sigma_1, sigma_2))), min(image.shape[-2:]) - 1, 10)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = torch.exp(-0.5 * ((along / sigma_1) ** 2 + (across / sigma_2) ** 2))
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, -1, -1).to(image)
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=image.shape[1])


def _shrink(image: Tensor, height: int, width: int, rng: np.random.Generator) -> Tensor:
    mode = rng.choice(["bilinear", "bicubic", "area"])
    return F.interpolate(image, (height, width), mode=str(mode)).clamp(-1, 1)


def _resize(image: Tensor, scale: float, mode: str) -> Tensor:
    return F.interpolate(image, scale_factor=scale, mode=mode, antialias=True)


def add_gaussian_noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image with noise of a random level up to 25/255: per channel, gray or correlated."""
    level = rng.uniform(2, 25) / 255 * 2
    kind = rng.choice(["color", "gray", "correlated"], p=[0.4, 0.4, 0.2])
    size = image.shape[-2:]
    if kind == "gray":
        noise = np.broadcast_to(rng.standard_normal((1, *size)), (3, *size))
    else:
        noise = rng.standard_normal((3, *size))
        if kind == "correlated":
            mix = rng.uniform(-1, 1, (3, 3))
            mix = mix / np.linalg.norm(mix, axis=1, keepdims=True)
            noise = np.einsum("ij,jhw->ihw", mix, noise)
    return (image + level * torch.from_numpy(np.ascontiguousarray(noise)).to(image)[None]).clamp(-1, 1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Return the image after JPEG compression at a quality in 1..95."""
    pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=quality)
    loaded = np.asarray(Image.open(stored).convert("RGB"))
    return torch.from_numpy(loaded.copy()).to(image).permute(2, 0, 1)[None] / 127.5 - 1
