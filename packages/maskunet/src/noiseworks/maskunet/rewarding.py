"""Differentiable scorers of images, by name: what masks are optimised for at inference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.models import resolve_model
from noiseworks.kits.image_tuning.rewards import Channel, brightness, imported
from noiseworks.maskunet.options import Scorers
from torch import Tensor

# (images [B, 3, H, W] in [0, 1], prompts) -> [B], higher is better; gradients pass to the images.
Scorer = Callable[[Tensor, Sequence[str]], Tensor]
Weighted = Sequence[tuple[Scorer, float]]

_NAMED: dict[str, Scorer] = {
    "brightness": brightness,
    "redness": Channel(0),
    "greenness": Channel(1),
    "blueness": Channel(2),
}


class ClipScorer:
    """Cosine of image and prompt under a CLIP model, with gradients to the image (also HPS and PickScore checkpoints).

    Args:
        model: A directory of transformers' `CLIPModel` and its processor, or a hub id.

    Raises:
        InputError: When it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        try:
            path = resolve_model(model)
            self.model: Any = CLIPModel.from_pretrained(path).eval().requires_grad_(False)
            self.processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no CLIP model can be loaded from {model}: {first_line(error)}") from error

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosines [B] of images that are resized bicubically, cut and normalised as CLIP's are."""
        side = self.model.config.vision_config.image_size
        scale = side / min(images.shape[-2:])
        size = [max(side, round(edge * scale)) for edge in images.shape[-2:]]
        pixels = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((edge - side) // 2 for edge in size)
        pixels = pixels[..., top : top + side, left : left + side]
        own = self.processor.image_processor
        mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(pixels) for v in (own.image_mean, own.image_std))
        text = self.processor(text=list(prompts), return_tensors="pt", padding=True, truncation=True)
        found = self.model.to(images.device)(
            pixel_values=(pixels - mean) / std, **{k: v.to(images.device) for k, v in text.items()}
        )
        return torch.cosine_similarity(found.image_embeds, found.text_embeds)


def load_scorers(choice: Scorers) -> list[tuple[Scorer, float]]:
    """Return the scorers that are named, with their weights.

    Raises:
        InputError: When there is none of a name, or what it needs is not there.
    """
    return [(scorer_of(name), weight) for name, weight in choice.weighted]


def scorer_of(name: str) -> Scorer:
    """Return a scorer by its name, see `Scorers`.

    Raises:
        InputError: When there is none, or what it needs is not there.
    """
    if name in _NAMED:
        return _NAMED[name]
    kind, _, rest = name.partition("=")
    if kind == "clip" and rest:
        return ClipScorer(rest)
    known = f"{', '.join(_NAMED)}, clip=FOLDER or module=function"
    return imported(kind, rest, f"scorer {name!r}", known)


def total_reward(scorers: Weighted, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return sum_i w_i Psi_i(x_0, c) of each image [B] (eq. 8).

    Raises:
        InputError: When a scorer returns no number an image.
    """
    total = images.new_zeros(len(images))
    for scorer, weight in scorers:
        found = scorer(images, prompts)
        if found.shape != (len(images),):
            raise InputError(f"a scorer returned shape {tuple(found.shape)} for {len(images)} images")
        total = total + weight * found
    return total
