"""Images to train on: bundled digits and scenes, a file of labelled images, or a folder of the user's own."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DIGITS, SHAPES = "digits", "shapes"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SCENES = {"train": 4096, "test": 1024}  # so many have one object in about two of three


def load_images(
    data: str, *, needs: str, split: str = "train", size: int | None = None
) -> "tuple[Tensor, Tensor]":
    """Return images and labels.

    Args:
        data: `digits` (8x8 handwritten digits); `shapes` (32x32 scenes of one object, of 24 classes of shape and
            colour); a .npz file with `x`, images [n, h, h, c] or [n, h, h] of whole numbers from 0 to 255 or of numbers
            from -1 to 1, and `y`, labels from 0; or a folder of image files, whose classes are its sub-folders in
            alphabetical order, if it has any.
        needs: The method that asks, whose extra [bench] brings digits and shapes.
        split: Of digits and shapes, `train` or `test`; a file or a folder has none.
        size: Side to which the central squares of a folder's images are resized; needed there, and only there.

    Returns:
        float32 [n, c, h, h] in [-1, 1] and int64 [n].

    Raises:
        InputError: When the data are missing or do not hold that.
    """
    import numpy as np
    import torch

    folder = data not in (DIGITS, SHAPES) and Path(data).is_dir()
    if folder != (size is not None):
        raise InputError(
            f"a folder of images needs size, the side in pixels they are resized to: {data}"
            if folder
            else f"size is for folders of images, {data} has images of its own size"
        )
    if data == DIGITS:
        images, labels = testbed(DIGITS, needs=needs).load(split)
    elif data == SHAPES:
        images, labels = _scenes(split, needs)
    elif size is not None:
        images, labels = _read_folder(Path(data), size)
    else:
        images, labels = _read(Path(data))
    if images.dtype == np.uint8:
        images = images / 127.5 - 1
    images = images[..., None] if images.ndim == 3 else images
    tensor = torch.as_tensor(images, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    return tensor, torch.as_tensor(labels, dtype=torch.int64)


def load_halves(
    data: str, *, needs: str, size: int | None = None
) -> "tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]":
    """Return labelled images to learn from and to ask about: of a file or a folder every fourth image is asked about.

    The arguments are those of `load_images`.
    """
    images, labels = load_images(data, needs=needs, size=size)
    if data in (DIGITS, SHAPES):
        return (images, labels), load_images(data, needs=needs, split="test")
    rest = [row for row in range(len(images)) if row % 4]
    return (images[rest], labels[rest]), (images[::4], labels[::4])


def _scenes(split: str, needs: str) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    shapes = testbed(SHAPES, needs=needs)
    scenes = [scene for scene in shapes.sample_scenes(SCENES[split], 0, split) if scene.kind == "single"]
    classes = {
        name: number for number, name in enumerate(testbed("shapes.architectures", needs=needs).CLASSES)
    }
    labels = [classes[f"{scene.objects[0].color} {scene.objects[0].shape}"] for scene in scenes]
    return shapes.render(scenes) * 2 - 1, np.array(labels)


def _read_folder(folder: Path, size: int) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"no images ({', '.join(SUFFIXES)}) below {folder}")
    classes = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    if classes and any(path.parent == folder for path in files):
        raise InputError(f"{folder} holds images beside its sub-folders; put all into classes, or none")
    images = np.empty((len(files), size, size, 3), np.uint8)
    for number, path in enumerate(files):
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} is no readable image ({error}); remove or repair it") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        images[number] = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    names = [path.relative_to(folder).parts[0] for path in files]
    return images, np.array([classes.index(name) if classes else 0 for name in names])


def _read(path: Path) -> tuple:
    import numpy as np

    if not path.is_file():
        raise InputError(
            f"no data {str(path)!r}; name {DIGITS}, {SHAPES}, a folder of images, "
            "or a .npz file with images x and labels y"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no .npz file with images x and labels y: {error}") from error
    square = x.ndim in (3, 4) and x.shape[1] == x.shape[2]
    if not square or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        raise InputError(f"{path} must hold square images x and whole labels y, got {x.shape} and {y.shape}")
    finite = x.dtype.kind in "iuf" and bool(np.isfinite(x).all())
    if not finite or (x.dtype != np.uint8 and math.ceil(float(np.abs(x).max())) > 1) or y.min() < 0:
        raise InputError(f"{path} must hold images of uint8, or of numbers from -1 to 1, and labels from 0")
    return x, y
