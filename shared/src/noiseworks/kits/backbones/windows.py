"""Windows of channels that slide with the timestep (Park et al. 2024), which two methods build on."""

import torch
from torch import Tensor


def window_starts(num_tasks: int, channels: int, active: int, alpha: float) -> Tensor:
    """Return the first channel of every timestep's window, `round(u^α (C - n))` with u = t / (T - 1), int64 (T,).

    Half is rounded to even. At α = 0, u^0 is 1 everywhere.

    Args:
        num_tasks: T, at least 2.
        channels: C.
        active: n, channels of a window.
        alpha: 1 slides evenly; above, slowly at first.
    """
    u = torch.linspace(0, 1, num_tasks, dtype=torch.float64)
    return (u**alpha * (channels - active)).round().long()
