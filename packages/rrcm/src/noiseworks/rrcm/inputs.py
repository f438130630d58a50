"""What the commands read, checked before anything is written."""

from pathlib import Path

from noiseworks.core.artifacts import read_json
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.images import load_images
from torch import Tensor


def kind_of(model: Path) -> str:
    """Return what a saved model is.

    Raises:
        ArtifactError: When the folder holds none.
    """
    return str(read_json(model / "config.json", "model").get("kind"))


def shaped_images(data: str, shape: tuple[int, int], split: str) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1] and labels.

    Args:
        data: As in the kit's `load_images`.
        shape: Channels and side that the model takes.
        split: Of the digits.

    Raises:
        InputError: When the images have another shape.
    """
    images, labels = load_images(data, needs="rrcm", split=split)
    found = (images.shape[1], images.shape[-1])
    if found != shape:
        raise InputError(
            f"the model takes images of {shape[0]} channels and side {shape[1]}, {data} has {found[0]} and {found[1]}"
        )
    return (images / 2 + 0.5).clamp(0, 1), labels


def check_sizes(rows: int, batch: int, side: int = 1, patch: int = 1) -> None:
    """Refuse patches that do not divide an image, and more images a batch than there are.

    Raises:
        InputError: Naming the option.
    """
    if side % patch:
        raise InputError(f"image_size must be a multiple of patch ({patch}), got {side}")
    if rows < batch:
        raise InputError(f"batch_size must be at most the number of images ({rows}), got {batch}")
