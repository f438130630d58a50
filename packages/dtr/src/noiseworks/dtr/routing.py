"""The masks: which channels are on at which timestep (section 3 of the paper)."""

from collections.abc import Callable
from functools import lru_cache

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.dtr.options import Routing
from noiseworks.kits.backbones import window_starts
from torch import Tensor


@lru_cache(maxsize=64)
def route_starts(routing: Routing, channels: int) -> Tensor:
    """Return the first channel of every timestep's window, `round(u^α (C - n))` with u = t / (T - 1), int16 or int64.

    Args:
        routing: The settings.
        channels: C.
    """
    starts = window_starts(routing.num_tasks, channels, routing.active(channels), routing.alpha)
    return starts.to(torch.int16 if channels < 2**15 else torch.int64)


def task_rows(routing: Routing, timesteps: Tensor) -> Tensor:
    """Return the row of the table of each timestep, int64 (B,): whole ones as they are, others the nearest row.

    Raises:
        InputError: On a whole timestep outside 0 ... T - 1, or one that is not finite.
    """
    last = routing.num_tasks - 1
    if timesteps.is_floating_point():
        if not bool(torch.isfinite(timesteps).all()):
            raise InputError("timesteps must be finite")
        # Not in the type of the model: bfloat16 has no 257.
        return timesteps.double().round().clamp(0, last).long()
    if len(timesteps) and not 0 <= int(timesteps.min()) <= int(timesteps.max()) <= last:
        raise InputError(
            f"timesteps must be from 0 to {last}, got {int(timesteps.min())} to {int(timesteps.max())}; "
            "set num_tasks to the number of training timesteps"
        )
    return timesteps.long()


def window_mask(routing: Routing, channels: int, rows: Tensor) -> Tensor:
    """Return `start ≤ c < start + n` for rows of the table (B,), bool (B, C)."""
    starts = route_starts(routing, channels).to(rows.device)[rows].long()[:, None]
    places = torch.arange(channels, device=rows.device)
    return (places >= starts) & (places < starts + routing.active(channels))


@lru_cache(maxsize=64)
def random_table(routing: Routing, channels: int, block: int) -> Tensor:
    """Return n random channels for every timestep of a block, bool (T, C); other blocks have others."""
    generator = torch.Generator().manual_seed(mix64(routing.routing_seed, block) >> 1)
    ranks = torch.rand(routing.num_tasks, channels, generator=generator).argsort(1).argsort(1)
    return ranks < routing.active(channels)


def route_mask(routing: Routing, channels: int, timesteps: Tensor, block: int = 0) -> Tensor:
    """Return which channels are on, bool (B, C).

    Args:
        routing: The settings.
        channels: C.
        timesteps: (B,), 0 the least noisy.
        block: Number of the block, which random masks depend on.
    """
    rows = task_rows(routing, timesteps)
    if routing.kind == "window":
        return window_mask(routing, channels, rows)
    return random_table(routing, channels, block).to(rows.device)[rows]


def route_block(x: Tensor, mask: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `x + Block(x ⊙ m) - x ⊙ m` as `Block(x ⊙ m) + x ⊙ (1 - m)`: the identity path keeps all channels.

    Args:
        x: Tokens (B, N, C).
        mask: (B, C) of numbers or truth values.
        block: The residual block, tokens -> tokens.
    """
    on = mask.to(x.dtype)[:, None]
    return block(x * on) + x * (1 - on)


def affinity(routing: Routing, channels: int, timesteps: Tensor) -> Tensor:
    """Return how many channels each two timesteps share, int64 (S, S)."""
    masks = route_mask(routing, channels, timesteps).double()
    return (masks @ masks.T).round().long()
