"""Data rows to left-padded prompts, and predicted ids to text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm import HostSpec, pad_prompts
from torch import Tensor

Row = Mapping[str, Any]
"""One example: `prompt` (text) and the columns that rewards read."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of one prompt; with a chat template the prompt is the user's message."""
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"]


def encode_prompts(tokenizer: Any, spec: HostSpec, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the prompts of data rows, see `pad_prompts`."""
    return pad_prompts([prompt_ids(tokenizer, row["prompt"]) for row in rows], spec.pad_id)


def decode_completions(tokenizer: Any, spec: HostSpec, ids: Tensor) -> list[str]:
    """Return the text of completions up to their first EOS; equal rows are decoded once.

    Ids that the tokenizer does not know count as EOS: models have more logits than tokens.

    Args:
        tokenizer: The model's tokenizer.
        spec: The host's contract.
        ids: int [N, L].
    """
    unique, place = torch.unique(ids.long(), dim=0, return_inverse=True)
    limit = len(tokenizer) if spec.vocab_limit is None else spec.vocab_limit
    ends = (unique >= limit) | torch.isin(unique, torch.tensor(spec.eos_ids, dtype=torch.long))
    lengths = torch.where(ends.any(dim=1), ends.int().argmax(dim=1), unique.shape[1]).tolist()
    kept = [row[:length] for row, length in zip(unique.tolist(), lengths, strict=True)]
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [texts[i] for i in place.tolist()]


def columns_of(rows: Sequence[Row], copies: int = 1) -> dict[str, list[Any]]:
    """Return the columns of rows besides `prompt`, each value repeated `copies` times in a row.

    Raises:
        InputError: When rows have different columns or no prompt.
    """
    names = set(rows[0])
    if "prompt" not in names or any(set(row) != names for row in rows):
        raise InputError(f"every data row needs a prompt and the same columns, the first has {sorted(names)}")
    return {name: [row[name] for row in rows for _ in range(copies)] for name in sorted(names - {"prompt"})}
