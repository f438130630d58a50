"""Goal embeddings by a frozen CLIP text model; needs the extra [clip]."""

from collections.abc import Callable, Sequence

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from torch import Tensor


def clip_text_encoder(
    name: str = "openai/clip-vit-base-patch32", device: str = "cpu"
) -> Callable[[Sequence[str]], Tensor]:
    """Return a callable for `TextGoalEncoder` that embeds texts with a frozen CLIP text model.

    Args:
        name: Directory or hub id of a CLIP model with its tokenizer; ViT-B/32 gives 512 numbers a text.
        device: Where it runs.

    Raises:
        InputError: When transformers is not installed (the extra `clip`), or the model cannot be loaded.
    """
    try:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    except ImportError as error:
        raise InputError(
            "CLIP goals need transformers; install noiseworks-mode[clip] or pass a table"
        ) from error
    source = resolve_model(name)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source)
        model = CLIPTextModelWithProjection.from_pretrained(source).to(device).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise InputError(f"the CLIP text model {name!r} cannot be loaded: {error}") from error

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
        return model(**tokens).text_embeds.float().cpu()

    return embed
