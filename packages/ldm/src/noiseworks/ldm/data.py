"""Image data of both stages: folders of image files and arrays, as [-1, 1] tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from noiseworks.core.arrays import read_array, read_arrays
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.training import TensorTable
from noiseworks.ldm.options import IMAGE_SUFFIXES, Images
from torch import Tensor
from torch.utils.data import Dataset


def to_tensor(images: np.ndarray) -> Tensor:
    """Return images [N, H, W, 3] as a float32 tensor [N, 3, H, W] in [-1, 1].

    Args:
        images: uint8, or floats in [0, 1].

    Raises:
        InputError: When the shape is not [N, H, W, 3], a float is outside [0, 1] or the type is another one.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"images must be [N, H, W, 3] (RGB), got {images.shape}; repeat a gray channel three times"
        )
    if images.dtype == np.uint8:
        scaled = torch.from_numpy(images).float() / 127.5 - 1.0
    elif np.issubdtype(images.dtype, np.floating):
        if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise InputError(f"float images must lie in [0, 1], got [{images.min():g}, {images.max():g}]")
        scaled = torch.from_numpy(images).float() * 2.0 - 1.0
    else:
        raise InputError(f"images must be uint8 or floats, got {images.dtype}")
    return scaled.permute(0, 3, 1, 2).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images [N, 3, H, W] in [-1, 1] as uint8 [N, H, W, 3], rounded."""
    scaled = (images.detach().float().clamp(-1, 1) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class ImageFolder(Dataset):
    """The image files below a folder, sorted by path, cropped to the central square and resized.

    Args:
        folder: Searched with its subfolders.
        size: Side of the images in pixels.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self._read(self.files[index])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {"image": torch.stack([self._read(self.files[index]) for index in indices])}

    def _read(self, path: Path) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} is no readable image ({error}); remove or repair it") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Cropped first: a resize with a box would let pixels outside the square bleed in.
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return to_tensor(np.array(image)[None])[0]


def load_images(given: Images) -> Dataset:
    """Return images as a dataset of mappings with `image` [3, H, W] in [-1, 1].

    Args:
        given: Names a folder of image files, or an `.npz` or `.npy` array [N, H, W, 3], uint8 or floats in [0, 1]
            (the array `images` of an `.npz`, or its only one). Arrays keep their size, and must have the given one
            where there is one.

    Raises:
        InputError: When there are no such images, or sizes do not fit.
    """
    given.check_present()
    path, size = Path(given.data), given.size
    if path.is_dir():
        return ImageFolder(path, size)
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if "images" not in arrays and len(arrays) != 1:
            raise InputError(f"{path} lacks the array images; it has {', '.join(arrays) or 'none'}")
        images = to_tensor(arrays.get("images", next(iter(arrays.values()))))
    else:
        images = to_tensor(read_array(path))
    if size is not None and images.shape[-2:] != (size, size):
        raise InputError(f"size is {size}, the images of {path} are {images.shape[-1]}x{images.shape[-2]}")
    return TensorTable({"image": images})


def holdout(dataset: Dataset, share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return row numbers of a training and a held-out part, drawn from `seed`; both hold at least one row.

    Args:
        dataset: Anything with a length of at least 2.
        share: Held-out share, between 0 and 1.
        seed: Of the draw.
    """
    check_number("share", share, low=0, high=1, low_open=True, high_open=True)
    rows = len(dataset)
    if rows < 2:
        raise InputError(f"a held-out part needs at least 2 images, got {rows}")
    order = np.random.default_rng(seed).permutation(rows)
    held = min(max(1, round(rows * share)), rows - 1)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


class Rows(Dataset):
    """Some rows of a dataset that reads whole batches (`__getitems__`).

    Args:
        dataset: The whole dataset.
        rows: Row numbers.
    """

    def __init__(self, dataset: Dataset, rows: Sequence[int]) -> None:
        self.dataset, self.rows = dataset, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.dataset[self.rows[index]]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.dataset.__getitems__([self.rows[index] for index in indices])
