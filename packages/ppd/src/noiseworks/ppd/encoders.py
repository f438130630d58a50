"""What choices say of somebody: features of the images that they preferred and of those that they did not.

The published method asks a vision-language model what somebody likes and takes its hidden states. Any function from
images to features stands in that place here.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.models import resolve_model
from noiseworks.kits.diffusers_hosts import encode_images
from noiseworks.kits.image_tuning.choices import load_pixels
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Features = Callable[[Tensor], Tensor]  # images [n, 3, H, W] in [0, 1] -> [n, k]


def describe_choices(features: Features, winners: Tensor, losers: Tensor) -> Tensor:
    """Return what each choice says: f(winner) - f(loser), then f(winner) [n, 2 k].

    Args:
        features: f.
        winners: Images that were preferred [n, 3, H, W] in [0, 1].
        losers: Images that were not [n, 3, H, W].

    Raises:
        InputError: When the features are not one row an image.
        NonFiniteError: When a feature is NaN or infinite.
    """
    with torch.inference_mode():
        liked, other = (features(images).float().cpu() for images in (winners, losers))
    for found in (liked, other):
        if found.ndim != 2 or len(found) != len(winners):
            raise InputError(
                f"the encoder returned shape {list(found.shape)} for {len(winners)} images; it returns [n, k]"
            )
    found = torch.cat([liked - other, liked], 1).clone()
    check_finite("the encoder's output", found)
    return found


def describe_files(
    features: Features, winners: Sequence[Path], losers: Sequence[Path], batch: int = 16
) -> Tensor:
    """Return `describe_choices` of image files [n, 2 k].

    Args:
        features: f.
        winners: Files of the preferred images.
        losers: Files of the others.
        batch: Choices of one call.
    """
    parts = []
    for first in range(0, len(winners), batch):
        images = [
            torch.stack([load_pixels(f) for f in files[first : first + batch]]) for files in (winners, losers)
        ]
        parts.append(describe_choices(features, *images))
    return torch.cat(parts)


def named_encoder(name: str, pipe: "DiffusionPipeline | None" = None) -> Features:
    """Return features by their name.

    Args:
        name: `latents` (means of the pipeline's own latents in the quarters of an image, and their spread),
            `clip:FOLDER` (a CLIP model's image embedding) or `module:function` of your own.
        pipe: The pipeline, for `latents`.

    Raises:
        InputError: When there is none of this name, or it cannot be loaded.
    """
    if name == "latents" and pipe is not None:
        return lambda images: _pooled(encode_images(pipe, images))
    kind, _, rest = name.partition(":")
    if kind == "clip" and rest:
        return _clip(rest)
    try:
        found = getattr(import_module(kind), rest)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"no encoder {name!r} ({error}); use latents, clip:FOLDER or module:function"
        ) from error
    if not callable(found):
        raise InputError(f"{name} is no function of images")
    return found


def _pooled(latents: Tensor) -> Tensor:
    if latents.ndim != 4:
        raise InputError("the encoder latents needs latents of shape [B, C, h, w]")
    quarters = torch.nn.functional.adaptive_avg_pool2d(latents, 2).flatten(1)
    return torch.cat([quarters, latents.flatten(2).std(2)], 1)


def _clip(folder: str) -> Features:
    from transformers import AutoProcessor, CLIPVisionModelWithProjection

    try:
        path = resolve_model(folder)
        model = CLIPVisionModelWithProjection.from_pretrained(path).eval()
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"no CLIP model can be loaded from {folder}: {first_line(error)}") from error

    def features(images: Tensor) -> Tensor:
        inputs = processor(images=list(images), return_tensors="pt", do_rescale=False)
        return torch.nn.functional.normalize(model(pixel_values=inputs["pixel_values"]).image_embeds, dim=-1)

    return features
