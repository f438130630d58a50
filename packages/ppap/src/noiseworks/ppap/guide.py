"""Guides: any network that reads clean images, with what it needs to be given them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, ModelNotFoundError, first_line
from noiseworks.core.models import resolve_model, without_loading_bars
from noiseworks.ppap.tasks import Classification, Depth, Segmentation, Task
from torch import Tensor, nn

# How the names of a transformers model's class end -> what it is.
KINDS = {
    "ForImageClassification": "classification",
    "ForDepthEstimation": "depth",
    "ForSemanticSegmentation": "segmentation",
}


@dataclass(frozen=True, eq=False)
class Guide:
    """A network of images, and what it is about.

    Attributes:
        model: Images (B, 3, h, w), normalised, -> a tensor, or an output object of transformers.
        task: What its outputs are.
        mean: Of each channel of images in [0, 1]; one value for all where there is one.
        std: Likewise.
        size: Side that images are scaled to, None to leave them.
    """

    model: nn.Module
    task: Task
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    size: int | None = None

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the network is given for images, noisy ones too, around [-1, 1]."""
        if self.size is not None and images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images / 2 + 0.5 - mean) / std

    def read(self, output: Any) -> Tensor:
        """Return the tensor of an output."""
        return output if isinstance(output, Tensor) else output[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's outputs for images in [-1, 1]."""
        return self.read(self.model(self.inputs(images)))


def load_guide(
    name: str | Path,
    temperature: float = 0.25,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Guide:
    """Load a guide of transformers by a directory or hub id.

    Args:
        name: Its name.
        temperature: Of a classifier's probabilities, as experts learn them.
        device: Where it goes.
        dtype: Precision of its weights.

    Raises:
        ModelNotFoundError: When it is not there or cannot be loaded.
        InputError: When it is about something else.
    """
    where = resolve_model(name)
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(where)
        kind = next((kind for ending, kind in KINDS.items() if _ends(config, ending)), None)
        if kind is None:
            raise InputError(
                f"the guide {name} is {config.architectures}, which must end in one of {', '.join(KINDS)}"
            )
        classes = {
            "classification": (transformers.AutoModelForImageClassification, Classification(temperature)),
            "depth": (transformers.AutoModelForDepthEstimation, Depth()),
            "segmentation": (transformers.AutoModelForSemanticSegmentation, Segmentation()),
        }
        cls, task = classes[kind]
        with without_loading_bars():
            model = cls.from_pretrained(where, dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise ModelNotFoundError(f"the guide {name} cannot be loaded: {first_line(error)}") from error
    told = Path(where) / "preprocessor_config.json"
    said = json.loads(told.read_text()) if told.is_file() else {}
    side = said.get("size", getattr(config, "image_size", None))
    if isinstance(side, dict):
        side = side.get("height", side.get("shortest_edge"))
    mean, std = (tuple(said.get(key, (0.5,))) for key in ("image_mean", "image_std"))
    return Guide(model.to(device).eval().requires_grad_(False), task, mean, std, side)


def _ends(config: Any, ending: str) -> bool:
    return any(name.endswith(ending) for name in config.architectures or ())
