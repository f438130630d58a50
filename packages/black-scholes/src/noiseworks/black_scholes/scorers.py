"""How well images match texts: the interface, and CLIP with the text features of each prompt computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, NonFiniteError, first_line
from noiseworks.core.models import resolve_model
from torch import Tensor, nn


class Scorer(Protocol):
    """Scores images against several texts each, on the 0-100 scale of CLIP. A plain function is one."""

    def __call__(self, images: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return the matches [B, M].

        Args:
            images: [B, 3, H, W] in [0, 1].
            texts: M texts for each image.
        """
        ...


@torch.no_grad()
def score(scorer: Scorer, images: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return a scorer's matches, float64 [B, M] on the CPU.

    Raises:
        InputError: When they have another shape.
        NonFiniteError: When one is NaN or infinite.
    """
    found = torch.as_tensor(scorer(images, texts)).detach().double().cpu()
    if found.shape != (len(texts), len(texts[0])):
        raise InputError(
            f"the scorer returned shape {tuple(found.shape)}, needed: {(len(texts), len(texts[0]))}"
        )
    if not bool(found.isfinite().all()):
        raise NonFiniteError("the scorer returned NaN or infinity")
    return found


class ClipScorer(nn.Module):
    """100 times the cosine of image and text under a CLIP model of transformers.

    One image encoding for all texts of an image; a text is encoded once. Resizing and normalising stay on the device.

    Args:
        model: A directory of transformers' `CLIPModel` and its processor, a hub id, or `testbed:shapes-clip`.
        device: Where it runs.

    Raises:
        InputError: When it cannot be loaded.
    """

    def __init__(self, model: str | Path, device: str | torch.device = "cpu") -> None:
        super().__init__()
        from transformers import AutoProcessor, CLIPModel

        path = resolve_model(model)
        try:
            self.model = CLIPModel.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
            processor = AutoProcessor.from_pretrained(path)
            images = processor.image_processor
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (images.image_mean, images.image_std))
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            reason = first_line(error)
            raise InputError(f"no CLIP model can be loaded from {model}: {reason}") from error
        self.tokenizer, self.side = processor.tokenizer, self.model.config.vision_config.image_size
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.features: dict[str, Tensor] = {}
        self.to(device)

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return the matches [B, M] of images [B, 3, H, W] in [0, 1]."""
        images = images.to(self.mean)
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True)
        pixels = (images.clamp(0, 1) - self.mean) / self.std
        pooled = self.model.vision_model(pixels).pooler_output
        vision = F.normalize(self.model.visual_projection(pooled), dim=-1)
        text = torch.stack([torch.stack([self._text(one) for one in row]) for row in texts])
        return 100 * torch.einsum("bd,bmd->bm", vision, text)

    def _text(self, text: str) -> Tensor:
        if text not in self.features:
            limit = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer([text], padding="max_length", max_length=limit, return_tensors="pt")[
                "input_ids"
            ]
            if tokens.shape[1] > limit:
                raise InputError(
                    f"{text!r} has {tokens.shape[1]} tokens, more than the scorer's {limit}: shorten it"
                )
            pooled = self.model.text_model(tokens.to(self.mean.device)).pooler_output
            self.features[text] = F.normalize(self.model.text_projection(pooled), dim=-1)[0]
        return self.features[text]
