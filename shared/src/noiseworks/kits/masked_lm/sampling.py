"""Filters of logits, and draws of tokens that depend on a row's seed and position, not on the batch."""

from collections.abc import Sequence

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import gumbel_argmax, seed_keys
from torch import Tensor


def row_keys(
    rows: int,
    length: int,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return one random key a generated position, int64 [rows, length]; a row's keys depend on its seed alone.

    Args:
        rows: Rows B.
        length: Generated positions.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead.
        device: Where the keys are put.

    Raises:
        InputError: When the number of seeds is not the number of rows.
    """
    if seeds is None:
        where = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**62, (rows,), generator=generator, device=where).tolist()
    if len(seeds) != rows:
        raise InputError(f"need one seed a row, got {len(seeds)} for {rows} rows")
    return seed_keys(seeds, range(length)).to(device)


def filter_logits(logits: Tensor, top_p: float | None = None, top_k: int | None = None) -> Tensor:
    """Return logits with -inf outside the nucleus (the token that crosses `top_p` stays) and the top k.

    Args:
        logits: [..., V], already divided by the temperature.
        top_p: Mass of the nucleus, in (0, 1]; None keeps all.
        top_k: Tokens kept, at least 1; None keeps all.

    Raises:
        InputError: When a number is out of range.
    """
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must lie in (0, 1], got {top_p}")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        p = ranked.softmax(dim=-1)
        outside = (p.cumsum(dim=-1) - p) > top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def draw_tokens(logits: Tensor, keys: Tensor, *, temperature: float = 0.0, call: int = 0) -> Tensor:
    """Return one token a position: the likeliest at temperature 0, else a draw in float64.

    Args:
        logits: [B, n, V]; -inf forbids a token.
        keys: One key a position, int64 [B, n] (`row_keys`).
        temperature: At least 0.
        call: Number of the network call, so that every call draws anew.

    Returns:
        int64 [B, n].

    Raises:
        InputError: On a negative temperature or NaN logits.
    """
    if temperature < 0:
        raise InputError(f"temperature must be at least 0, got {temperature}")
    if temperature == 0:
        return logits.argmax(dim=-1)
    vocabulary = logits.shape[-1]
    counter = call * (-(-vocabulary // 2))
    rows = logits.reshape(-1, vocabulary)
    flat = keys.reshape(-1)
    drawn = gumbel_argmax(rows, flat, temperature=temperature, counter0=counter, precision="float64")
    return drawn.reshape(keys.shape)
