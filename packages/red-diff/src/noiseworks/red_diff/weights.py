"""Which noise levels are visited, in which order, and how the prior's pull is weighted (section 4 of the paper).

Index t means the level after t + 1 noising steps, and -1 the clean image, as in `core.schedules.TableSchedule`.
"""

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level
from torch import Tensor

WEIGHTS = ("linear", "sqrt", "square", "log", "trunc_linear", "power2over3", "const")
ORDERS = ("descending", "ascending", "random", "random_permutation", "fixed")


def weight_of(level: Level, kind: str) -> Tensor:
    """Return w / lambda as a function of rho = sigma / alpha, the inverse root of the signal-to-noise ratio.

    With `linear` the prior's gradient is lambda (mu - x0), the pull towards the denoised image.

    Args:
        level: Noise level.
        kind: One of `WEIGHTS`.
    """
    check_choice("weight", kind, WEIGHTS)
    rho = level.sigma_ve
    match kind:
        case "linear":
            return rho
        case "sqrt":
            return rho.sqrt()
        case "square":
            return rho.square()
        case "log":
            return torch.log1p(rho)
        case "trunc_linear":
            return rho.clamp(max=1.0)
        case "power2over3":
            return rho ** (2 / 3)
    return torch.ones_like(rho)


def timestep_grid(num_steps: int, start: int = 1000, end: int = 0) -> list[int]:
    """Return the timesteps of a run, noisy to clean: end, end + k, ... below start, with k = (start - end) // n.

    Args:
        num_steps: n.
        start: First timestep that is not visited.
        end: Last timestep that is visited.

    Raises:
        InputError: When the stride does not give n timesteps.
    """
    if not 0 <= end < start or not 1 <= num_steps <= start - end:
        raise InputError(f"num_steps must lie in 1 ... {max(start - end, 1)}, got {num_steps}")
    stride = (start - end) // num_steps
    grid = list(range(end, start, stride))
    if len(grid) != num_steps:
        raise InputError(
            f"{num_steps} steps do not divide {start - end} timesteps: a stride of {stride} makes {len(grid)} steps; "
            f"ask for {len(grid)}"
        )
    return grid[::-1]


def ordered(grid: list[int], order: str, *, fixed: int = 500, seed: int = 0) -> list[int]:
    """Return the timesteps in the order in which they are visited.

    Args:
        grid: Noisy to clean, from `timestep_grid`.
        order: One of `ORDERS`; `random` draws with replacement, `fixed` stays at one level, which is plain
            regularisation by denoising.
        fixed: The timestep of `fixed`.
        seed: Of the random orders.
    """
    check_choice("order", order, ORDERS)
    generator = torch.Generator().manual_seed(seed)
    match order:
        case "ascending":
            return grid[::-1]
        case "random":
            return [grid[int(i)] for i in torch.randint(len(grid), (len(grid),), generator=generator)]
        case "random_permutation":
            return [grid[int(i)] for i in torch.randperm(len(grid), generator=generator)]
        case "fixed":
            return [fixed] * len(grid)
    return grid
