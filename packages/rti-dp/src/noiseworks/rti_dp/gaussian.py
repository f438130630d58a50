"""How much of a guess's error one replan leaves: in closed form for Gaussian data, measured for a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.loop import DenoisingLoop
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.policies.schedulers import make_scheduler
from noiseworks.kits.policies.steps import check_steps
from noiseworks.rti_dp.options import Stepping
from noiseworks.rti_dp.stepping import next_steps, step_table
from torch import Tensor

ERROR = 0.05  # standard deviation of the error that a policy's contraction is measured by


@dataclass(frozen=True)
class Gaussian:
    """Actions that are all N(mean, variance), independently.

    Attributes:
        mean: Mean.
        variance: Variance; 0 for a point mass.
    """

    mean: float = 0.0
    variance: float = 1e-3

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("variance", self.variance, low=0)


class GaussianHost:
    """A host whose network is the exact score of Gaussian actions; observations are not read.

    eps(x) = sqrt(1 - abar) (x - sqrt(abar) mean) / (abar variance + 1 - abar).

    Args:
        data: The actions' distribution.
        horizon: Actions of a prediction.
        action_dim: Width of an action.
        n_action_steps: Actions executed of each prediction.
        num_train_timesteps: Steps of the squared-cosine schedule.
        clip_sample: Whether predicted clean actions are clipped to [-1, 1].
    """

    n_obs_steps = 1

    def __init__(
        self,
        data: Gaussian,
        *,
        horizon: int = 8,
        action_dim: int = 1,
        n_action_steps: int = 4,
        num_train_timesteps: int = 100,
        clip_sample: bool = False,
    ) -> None:
        self.data, self.horizon, self.action_dim = data, horizon, action_dim
        self.n_action_steps = n_action_steps
        self.scheduler = make_scheduler(num_train_timesteps, clip_sample=clip_sample)
        self.normalizer = LinearNormalizer.identity(action_dim)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return the first observation's tensor, which only says how many rows there are."""
        return next(iter(obs.values()))

    def denoise(self, x: Tensor, k: Tensor | int, cond: Any) -> Tensor:
        """Return the exact noise in x [B, T, Da] at steps k."""
        abar = self.scheduler.alphas_cumprod[torch.as_tensor(k)].reshape(-1, 1, 1)
        spread = abar * self.data.variance + 1 - abar
        return (1 - abar).sqrt() * (x - abar.sqrt() * self.data.mean) / spread


def contraction(
    host: Any,
    steps: Sequence[int] = (2, 1, 0),
    *,
    stepping: Stepping = "consistent",
    obs: Mapping[str, Tensor] | None = None,
    guess: Tensor | None = None,
    seed: int = 0,
) -> float:
    """Return the factor by which one warm replan shrinks a guess's error; below 1 it contracts.

    Args:
        host: A `Gaussian` for the exact slope of the mean map on the squared-cosine schedule with 100 steps (without
            clipping), or a policy.
        steps: Denoising indices.
        stepping: See `RTIPolicy`.
        obs: For a policy: observations [B, To, ...].
        guess: For a policy: guesses [B, Tp, Da] in normalised units, such as a full denoising's prediction.
        seed: For a policy: of the error that is put on the guess and of the steps' noise.

    Raises:
        InputError: When a list is wrong, or a policy comes without observations and guesses.
    """
    if isinstance(host, Gaussian):
        return _gaussian_slope(host, steps, stepping)
    if obs is None or guess is None:
        raise InputError("the contraction of a policy needs obs and guess, where it is measured")
    host = as_host(host)
    table, cond, rows = step_table(host.scheduler, steps, stepping=stepping), host.encode(obs), len(guess)
    error = ERROR * torch.randn(guess.shape, generator=torch.Generator().manual_seed(seed)).to(guess)
    loop, ends = DenoisingLoop(host, rows), []
    for start in (guess, guess + error):
        loop.start(rows).copy_(start)
        ends.append(loop.run(table, cond, rows, torch.Generator().manual_seed(seed + 1)).clone())
    return float((ends[1] - ends[0]).norm() / error.norm())


def _gaussian_slope(data: Gaussian, steps: Sequence[int], stepping: Stepping) -> float:
    """Return the product of the steps' slopes, in float64.

    With the exact score d x0 / dx = sqrt(abar) v / (abar v + 1 - abar), and the mean of a step is
    a(k, k') x0 + b(k, k') x.
    """
    abars = make_scheduler().alphas_cumprod.double()
    found, slope = check_steps(steps, len(abars)), 1.0
    for k, then in zip(found, next_steps(found, stepping), strict=True):
        abar, after = abars[k], abars[then] if then >= 0 else torch.ones((), dtype=torch.float64)
        alpha = abar / after
        of_x0 = after.sqrt() * (1 - alpha) / (1 - abar)
        of_x = alpha.sqrt() * (1 - after) / (1 - abar)
        clean = abar.sqrt() * data.variance / (abar * data.variance + 1 - abar)
        slope *= float(of_x0 * clean + of_x)
    return slope
