"""First-hitting times of masked diffusion: when, and in which order, masks disappear (section 4 of the paper)."""

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.discrete import MaskSchedule, linear
from noiseworks.core.errors import InputError
from noiseworks.core.noise import words
from torch import Tensor


def time_of(schedule: MaskSchedule, share: Tensor) -> Tensor:
    """Return the times at which a share m of the tokens is masked: the inverse of `schedule.mask_prob`.

    Found by bisection in float64, so any increasing schedule will do.

    Args:
        schedule: The schedule.
        share: m in [0, 1], float64, any shape; NaN stays NaN.
    """
    share = torch.as_tensor(share, dtype=torch.float64)
    if schedule.kind == "linear":
        return share
    given, share = share, share.nan_to_num()
    low, high = torch.zeros_like(share), torch.ones_like(share)
    for _ in range(60):
        middle = (low + high) / 2
        below = schedule.mask_prob(middle) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).masked_fill(given.isnan(), torch.nan)


def check_schedule(schedule: MaskSchedule) -> None:
    """Refuse a schedule that is not increasing, or does not end fully masked.

    Raises:
        InputError: On either.
    """
    m = schedule.mask_prob(torch.linspace(0, 1, 257, dtype=torch.float64))
    if not bool((m.diff() > 0).all()) or float(m[-1]) < 0.999:
        raise InputError(
            f"schedule {schedule.kind!r} must increase and mask everything at t = 1; it ends at {float(m[-1]):.4f}"
        )


def next_log_share(log_share: Tensor, masks: Tensor, uniform: Tensor) -> Tensor:
    """Return log m after the next of `masks` tokens is revealed: log m + log(u) / n.

    The n hitting times are independent and uniform in m on (0, m(τ_n)); the next event is their maximum, whose
    share is m u^(1/n). In logarithms u^(1/n) does not round to 1 for large n.

    Args:
        log_share: log m now, float64 [B].
        masks: n, [B].
        uniform: u in (0, 1], float64 [B].
    """
    return log_share + uniform.log() / masks


def hitting_times(
    masks: int,
    schedule: MaskSchedule | None = None,
    batch: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the times of the first, second, … last reveal of `masks` masked tokens, float64 [batch, masks].

    Args:
        masks: n, at least 1.
        schedule: By default linear, where the mean time of the next reveal of n masks is n / (masks + 1).
        batch: Independent runs.
        generator: Source of randomness.
    """
    check_number("masks", masks, low=1, integer=True)
    check_number("batch", batch, low=1, integer=True)
    schedule = linear() if schedule is None else schedule
    check_schedule(schedule)
    uniform = 1 - torch.rand(batch, masks, generator=generator, dtype=torch.float64)
    left = torch.arange(masks, 0, -1, dtype=torch.float64)
    return time_of(schedule, (uniform.log() / left).cumsum(dim=1).exp())


def key_uniform(keys: Tensor, counter0: int = 0) -> Tensor:
    """Return one uniform in (0, 1] a key, of 53 bits, float64 with the shape of `keys`."""
    high, low = words(keys.reshape(-1), 2, counter0).unbind(dim=-1)
    return ((((high << 21) | (low >> 11)).double() + 1) * 2.0**-53).reshape(keys.shape)


def reveal_counts(masks: int, steps: int) -> list[int]:
    """Return how many tokens each of `steps` calls reveals: n_{i-1} - n_i with n_i = floor(n (N - i) / N).

    Raises:
        InputError: Unless 1 <= steps <= masks.
    """
    check_number("steps", steps, low=1, high=masks, integer=True)
    left = [masks * (steps - i) // steps for i in range(steps + 1)]
    return [left[i] - left[i + 1] for i in range(steps)]
