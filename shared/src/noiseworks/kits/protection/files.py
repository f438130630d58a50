"""Pictures in and out: what cameras and editors write becomes uint8 RGB, and leaves as a PNG within the budget."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.pictures import write_picture

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST, LARGEST = 16, 100_000_000  # a side, and pixels in all


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as protections take it.

    Attributes:
        pixels: uint8 [H, W, 3], upright.
        alpha: uint8 [H, W], or None.
        notes: What was changed on reading, in a few words each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """Write it as a PNG, with its transparency."""
        layers = self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])
        return write_picture(layers, path)


def read_picture(path: str | Path) -> Picture:
    """Read a picture: turned upright, 8 bits, RGB.

    Raises:
        InputError: When it is no picture, is animated, has a side below 16 or more than 100 million pixels, or holds
            values that are not finite.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # What is too large is said below, in one sentence.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "TIFF":
                raise InputError(f"{path} is animated ({image.n_frames} frames); give single pictures")
            width, height = image.size
            if min(width, height) < SMALLEST or width * height > LARGEST:
                raise InputError(
                    f"{path} is {width}x{height}; sides must be at least {SMALLEST} and pixels at most {LARGEST}"
                )
            image.load()
            mode = image.mode
            turned = ImageOps.exif_transpose(image)
    except InputError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{path} cannot be read: {reason}") from error
    notes = []
    if turned.size != (width, height) or image.getexif().get(0x0112, 1) not in (0, 1):
        notes.append("turned upright")
    if mode.startswith("I") or mode == "F":
        values = np.asarray(turned).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{path} holds values that are no numbers or infinite")
        # Integers of 16 bits say so in their mode or by their size; floats are on the scale of 1 unless they exceed it.
        deep = mode.startswith("I;16") or values.max() > 255
        top = 65535.0 if deep else 1.0 if mode == "F" and values.max() <= 1 else 255.0
        grey = np.clip(np.round(values * (255 / top)), 0, 255).astype(np.uint8)
        return Picture(np.repeat(grey[..., None], 3, axis=2), None, (*notes, "16 bits to 8", "grey to RGB"))
    alpha = None
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        alpha = np.asarray(turned.getchannel("A"))
    if mode not in ("RGB", "RGBA"):
        notes.append(f"{mode} to RGB")
    return Picture(np.asarray(turned.convert("RGB")), alpha, tuple(notes))


def read_mask(path: str | Path, size: tuple[int, int], white: str = "keep") -> np.ndarray:
    """Read a mask: bool [H, W], True where the picture is kept and protected.

    Args:
        path: A picture whose bright half is one region.
        size: Height and width of the picture that it belongs to.
        white: "keep" when white is what editors keep, "repaint" when it is what they repaint.

    Raises:
        InputError: When it cannot be read, has another size, or marks nothing or everything.
    """
    kept = read_picture(path).pixels.mean(axis=2) >= 127.5
    if white == "repaint":
        kept = ~kept
    if kept.shape != tuple(size):
        raise InputError(
            f"the mask {path} is {kept.shape[1]}x{kept.shape[0]} and its picture {size[1]}x{size[0]}: "
            "give masks of the picture's size"
        )
    if not kept.any() or kept.all():
        what = "nothing" if not kept.any() else "everything"
        raise InputError(f"the mask {path} keeps {what}: mark what is to be protected (see --white)")
    return kept


def list_pictures(source: str | Path) -> list[Path]:
    """Return a picture, or the pictures of a folder in the order of their names.

    Raises:
        InputError: When there is none, or two would be written under one name.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"no picture or folder at {source}")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"no pictures in {source}; looked for {', '.join(SUFFIXES)}")
    stems = [path.stem for path in found]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"two pictures in {source} are called {twice}: rename one, outputs are {twice}.png")
    return found


def to_tensor(pixels: np.ndarray) -> "Tensor":
    """Return uint8 [H, W, 3] or [n, H, W, 3] as floats [n, 3, H, W] in [0, 1]."""
    import torch

    batch = pixels if pixels.ndim == 4 else pixels[None]
    return torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2).float() / 255


def within_budget(images: "Tensor", originals: np.ndarray, eps_255: float) -> np.ndarray:
    """Return images [n, 3, H, W] in [0, 1] as uint8 [n, H, W, 3], rounded, no pixel further off than the budget.

    Args:
        images: Protected images.
        originals: uint8 [n, H, W, 3].
        eps_255: Largest change in levels; a fraction counts as the whole levels below it.
    """
    rounded = images.detach().cpu().double().mul(255).round().permute(0, 2, 3, 1).numpy()
    whole, limit = originals.astype(np.int64), int(eps_255)
    return np.clip(rounded, np.maximum(whole - limit, 0), np.minimum(whole + limit, 255)).astype(np.uint8)


@dataclass(frozen=True)
class Fit:
    """How a picture was brought to a size that a model takes.

    Attributes:
        size: Height and width of the picture.
        inner: Height and width at which it was protected.
        padding: Rows and columns added at the bottom and to the right.
    """

    size: tuple[int, int]
    inner: tuple[int, int]
    padding: tuple[int, int]


def fit_in(images: "Tensor", factor: int, side: int) -> tuple["Tensor", Fit]:
    """Return images shrunk to a largest side and padded to multiples of a factor, and how to come back.

    Args:
        images: [n, C, H, W].
        factor: What sides must be divisible by.
        side: Largest side at which the change is computed.
    """
    import torch.nn.functional as F

    height, width = images.shape[-2:]
    scale = min(1.0, side / max(height, width))
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    if inner != (height, width):
        images = F.interpolate(images, size=inner, mode="area")
    padding = -inner[0] % factor, -inner[1] % factor
    if any(padding):
        images = F.pad(images, (0, padding[1], 0, padding[0]), mode="replicate")
    return images, Fit((height, width), inner, padding)


def change_at_full_size(before: "Tensor", after: "Tensor", fit: Fit, eps: float) -> "Tensor":
    """Return the change [n, 3, H, W] for the picture itself: cropped, enlarged and clipped to the budget."""
    import torch.nn.functional as F

    change = (after - before)[..., : fit.inner[0], : fit.inner[1]]
    if fit.inner != fit.size:
        change = F.interpolate(change, size=fit.size, mode="bilinear", align_corners=False)
    return change.clamp(-eps, eps)


def upright_copy(picture: Picture, pixels: np.ndarray) -> Picture:
    """Return a picture with other pixels and the same transparency."""
    return replace(picture, pixels=pixels)
