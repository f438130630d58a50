"""Which levels are visited: step grids for sampling, per-token step plans, and the draw of training times."""

import math

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Schedule
from torch import Tensor

SPACINGS = ("leading", "trailing", "linspace", "quadratic")
PLANS = ("full_sequence", "autoregressive", "pyramid")


def timesteps(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, *, steps_offset: int = 0
) -> Tensor:
    """Return a falling grid of step indices, int64, (num_inference_steps,), without the clean end.

    `leading`: i ⌊N/n⌋ + offset; `trailing`: round(N − i N/n) − 1; `linspace`: N − 1 ... 0 inclusive, rounded;
    `quadratic`: squares of an even grid up to √(0.8 N) (Song et al. 2021, appendix D.2).

    Args:
        spacing: One of `SPACINGS`.
        num_train_timesteps: N of the table.
        num_inference_steps: n, at most N.
        steps_offset: Added to `leading` grids (1 for Stable Diffusion checkpoints).

    Raises:
        InputError: On an unknown spacing, n outside 1 ... N, or an offset that leaves the table.
    """
    N, n = num_train_timesteps, num_inference_steps
    check_choice("spacing", spacing, SPACINGS)
    check_number("num_inference_steps", n, low=1, high=N, integer=True)
    check_number("steps_offset", steps_offset, low=0, high=N - 1, integer=True)
    steps = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":
        grid = (steps * (N // n)).flip(0) + steps_offset
    elif spacing == "trailing":
        grid = (N - steps * N / n).round() - 1
    elif spacing == "linspace":
        grid = torch.linspace(0, N - 1, n, dtype=torch.float64).round().flip(0)
    else:
        grid = (torch.linspace(0, math.sqrt(0.8 * N), n, dtype=torch.float64) ** 2).floor().flip(0)
    if grid[0] > N - 1:
        raise InputError(
            f"a leading grid of {n} steps with offset {steps_offset} starts at {int(grid[0])}, past {N - 1}"
        )
    return grid.long()


def with_clean_end(grid: Tensor) -> Tensor:
    """Return a falling index grid with −1, the clean level, appended."""
    return torch.cat([grid, grid.new_full((1,), -1)])


def truncated_timesteps(t_trunc: int, num_inference_steps: int) -> Tensor:
    """Return indices from `t_trunc` down to the clean end −1, int64, (num_inference_steps + 1,).

    For samplers that start from a noised anchor, `add_noise(anchor, noise, schedule.level(t_trunc))`, and not
    from pure noise.

    Raises:
        InputError: When there are more steps than levels.
    """
    check_number("num_inference_steps", num_inference_steps, low=1, high=t_trunc + 1, integer=True)
    return torch.linspace(t_trunc, -1, num_inference_steps + 1, dtype=torch.float64).round().long()


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return n falling noise levels with `σ^{1/ρ}` evenly spaced, no final 0 (Karras et al. 2022, eq. 5).

    Raises:
        InputError: Unless 0 < sigma_min < sigma_max.
    """
    _check_sigmas(sigma_min, sigma_max)
    ramp = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n, dtype=torch.float64)
    return ramp**rho


def exponential_sigmas(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return n falling noise levels evenly spaced in log σ, float64, without the final 0.

    Raises:
        InputError: Unless 0 < sigma_min < sigma_max.
    """
    _check_sigmas(sigma_min, sigma_max)
    return torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64).exp()


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    check_number("sigma_min", sigma_min, low=0, low_open=True)
    check_number("sigma_max", sigma_max, low=sigma_min, low_open=True)


def append_zero(sigmas: Tensor) -> Tensor:
    """Return noise levels with the clean end 0 appended."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def uniform_log_snr_times(
    schedule: Schedule, n: int, t_start: float | None = None, t_end: float | None = None
) -> Tensor:
    """Return n times evenly spaced in log signal-to-noise ratio (Lu et al. 2022), float64, noisy to clean.

    Args:
        schedule: Any schedule with finite ends.
        n: Number of times, at least 2.
        t_start: The noisy end, by default the schedule's `t_max`.
        t_end: The clean end, by default the schedule's `t_min`.

    Raises:
        InputError: When an end is clean or pure noise, where the ratio is infinite.
    """
    check_number("n", n, low=2, integer=True)
    ends = [schedule.t_max if t_start is None else t_start, schedule.t_min if t_end is None else t_end]
    low, high = (float(schedule.log_snr(t)) for t in ends)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"times {ends} reach a level without noise or signal; name t_start and t_end inside")
    return schedule.t_of_log_snr(torch.linspace(low, high, n, dtype=torch.float64))


def delayed_steps(delays: Tensor, num_steps: int) -> Tensor:
    """Return how many denoising steps each place has done in each round, `k = clip(m − delay, 0, K)`.

    Round m runs from 0 (nothing done) to K + max(delay) (all done). It indexes a grid of K + 1 levels,
    noisy to clean: `with_clean_end(timesteps(...))[k]`.

    Args:
        delays: Rounds that each place waits, int64, of any shape.
        num_steps: K.

    Returns:
        int64, (K + max(delay) + 1, *delays.shape).
    """
    check_number("num_steps", num_steps, low=1, integer=True)
    rounds = torch.arange(num_steps + int(delays.max()) + 1, device=delays.device)
    return (rounds.reshape(-1, *[1] * delays.ndim) - delays).clamp(0, num_steps)


def schedule_matrix(kind: str, length: int, num_steps: int) -> Tensor:
    """Return the per-token step plan of a sequence (Chen et al. 2024, diffusion forcing), (M + 1, length).

    `full_sequence` denoises all tokens together, `autoregressive` one after the other, `pyramid` starts each
    token one round after the one before it. See `delayed_steps` for what the entries mean.

    Raises:
        InputError: On an unknown kind.
    """
    check_choice("kind", kind, PLANS)
    check_number("length", length, low=1, integer=True)
    offset = {"full_sequence": 0, "autoregressive": num_steps, "pyramid": 1}[kind]
    return delayed_steps(torch.arange(length) * offset, num_steps)


def delay_map(
    size: tuple[int, int],
    resolution: tuple[int, int],
    max_delay: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a smooth random map of delays, int64, (H, W): a coarse uniform field, resized bilinearly.

    With `delayed_steps` it gives per-pixel levels that fall monotonically, as for per-pixel noise schedules.
    """
    field = torch.rand(1, 1, *resolution, generator=generator)
    field = torch.nn.functional.interpolate(field, size=size, mode="bilinear", align_corners=True)
    return (field[0, 0] * max_delay).round().long()


def stratified_uniform(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return n times `(u + i/n) mod 1` with one uniform u: each is uniform, and all cover [0, 1) evenly.

    The low-discrepancy draw of Kingma et al. 2021 (appendix I.1); float64, (n,).
    """
    u = torch.rand(1, dtype=torch.float64, generator=generator)
    return (u + torch.arange(n, dtype=torch.float64) / n) % 1


def logit_normal_times(
    n: int, mean: float = 0.0, std: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return n flow times with `logit(t) ~ N(mean, std²)` (Esser et al. 2024, eq. 19), float64, (n,)."""
    return torch.sigmoid(mean + std * torch.randn(n, dtype=torch.float64, generator=generator))


def log_normal_sigmas(
    n: int, mean: float = -1.2, std: float = 1.2, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return n training noise levels with `ln σ ~ N(mean, std²)` (Karras et al. 2022, table 1), (n,)."""
    return torch.exp(mean + std * torch.randn(n, dtype=torch.float64, generator=generator))
