"""Goal embeddings by a frozen CLIP text model; needs the extra [clip]."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.output import check_file
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


def embed_goals(
    texts: Path, out: Path, *, model: str = "openai/clip-vit-base-patch32", device: str = "cpu"
) -> dict[str, Any]:
    """Embed the wordings of tasks by a CLIP text model: the `goals.npy` that training reads.

    Args:
        texts: JSON file: for every task, in the order of the one-hot, a list of its wordings; equally many each.
        out: The file to write, such as data/goals.npy.
        model: Directory or hub id of a CLIP model.
        device: cpu, cuda or cuda:<n>.

    Returns:
        The file and the number of tasks, of wordings and of entries of an embedding.

    Raises:
        InputError: When the file is no such list, or the model cannot be loaded.
    """
    check_file(out, sources=(texts,))
    try:
        tasks = json.loads(texts.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{texts} is no JSON file of wordings ({error})") from error
    lists = isinstance(tasks, list) and tasks and all(isinstance(task, list) and task for task in tasks)
    if not lists or not all(isinstance(text, str) for task in tasks for text in task):
        raise InputError(f"{texts} must hold a list of wordings for every task")
    if len({len(task) for task in tasks}) > 1:
        raise InputError(
            f"tasks need equally many wordings, got {sorted({len(task) for task in tasks})}; repeat some"
        )
    flat = [text for task in tasks for text in task]
    goals = clip_text_encoder(model, device)(flat).unflatten(0, (len(tasks), -1)).numpy()
    buffer = io.BytesIO()
    np.save(buffer, goals)
    atomic_write(out, buffer.getvalue())
    return {"out": str(out), "tasks": goals.shape[0], "wordings": goals.shape[1], "width": goals.shape[2]}
