"""Lists of denoising indices, and the reverse step at each of them as a row of coefficients.

With abar_k the cumulative product of the training schedule (k = 0 the least noisy), x0 the clipped prediction of
the clean actions and k' the level that a step leads to, the DDPM step of the paper is

    x' = sqrt(abar_k') beta / (1 - abar_k) x0 + sqrt(alpha) (1 - abar_k') / (1 - abar_k) x + sigma z,
    alpha = abar_k / abar_k',  beta = 1 - alpha,  sigma^2 = max(beta (1 - abar_k') / (1 - abar_k), 1e-20),

and the DDIM step is x' = sqrt(abar_k') x0 + sqrt(1 - abar_k') eps. Both are linear in x0, x, the network's
output and z, so a list of steps is a table of four numbers a step.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError, UnsupportedHostError
from torch import Tensor

Stepping = Literal["consistent", "reference"]
Solver = Literal["ddpm", "ddim"]
StepNoise = Literal["posterior", "none"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


@dataclass(frozen=True)
class StepTable:
    """A list of steps with everything but the network worked out.

    Attributes:
        timesteps: Indices k at which the network is called, decreasing.
        next_timesteps: Level k' that each step leads to; -1 is the clean end.
        signal: sqrt(abar_k) of each step, tensors [].
        sigma: sqrt(1 - abar_k) of each step, tensors [].
        coefficients: Of x0, x, the network's output and the noise of each step, four tensors [] each; None where
            a part is left out. Numbers would be made into tensors anew at every use.
        prediction_type: What the network predicts: `epsilon`, `sample` or `v_prediction`.
        clip: Bound of the predicted clean actions, or None.
    """

    timesteps: tuple[int, ...]
    next_timesteps: tuple[int, ...]
    signal: tuple[Tensor, ...]
    sigma: tuple[Tensor, ...]
    coefficients: tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], ...]
    prediction_type: str
    clip: float | None

    def __len__(self) -> int:
        return len(self.timesteps)


def check_steps(steps: Sequence[int], num_train_timesteps: int) -> tuple[int, ...]:
    """Return a list of denoising indices as a tuple.

    Args:
        steps: Decreasing indices.
        num_train_timesteps: Steps of the training schedule, N.

    Raises:
        InputError: When the list is empty, not decreasing, or an index is not in 0 to N - 1.

    Warns:
        UserWarning: When the list does not end in 0.
    """
    found = tuple(steps)
    if not found or any(isinstance(k, bool) or int(k) != k for k in found):
        raise InputError(f"steps must be a list of whole numbers such as (2, 1, 0), got {list(found)}")
    found = tuple(int(k) for k in found)
    wrong = [k for k in found if not 0 <= k < num_train_timesteps]
    if wrong:
        raise InputError(f"steps must lie in 0 to {num_train_timesteps - 1}, got {wrong[0]}")
    if any(after >= before for before, after in pairwise(found)):
        raise InputError(f"steps must decrease, such as (2, 1, 0), got {list(found)}")
    if found[-1] != 0:
        warnings.warn(
            f"the list of steps ends in {found[-1]} and not in 0: the actions keep the noise or the guess's error "
            "of that level",
            stacklevel=3,
        )
    return found


def next_steps(steps: Sequence[int], stepping: Stepping) -> tuple[int, ...]:
    """Return the level that each step of a list leads to.

    Args:
        steps: Decreasing indices.
        stepping: `consistent`: the next index of the list, and the clean end after the last. `reference`: k - 1,
            as the authors' code steps, so that after a jump the network is told a lower index than its input's
            level. They are the same for contiguous lists.
    """
    check_choice("stepping", stepping, ("consistent", "reference"))
    if stepping == "reference":
        return tuple(k - 1 for k in steps)
    return (*steps[1:], -1)


def step_table(
    scheduler: Any,
    steps: Sequence[int],
    *,
    stepping: Stepping = "consistent",
    solver: Solver = "ddpm",
    noise: StepNoise = "posterior",
) -> StepTable:
    """Return the coefficients of a list of steps under a diffusers scheduler's schedule.

    Numbers are computed in float32 in the order of diffusers' DDPM scheduler, so that a full list repeats that
    sampler bit for bit.

    Args:
        scheduler: A diffusers scheduler with `alphas_cumprod`.
        steps: Decreasing indices.
        stepping: See `next_steps`.
        solver: `ddpm` or `ddim` (deterministic).
        noise: `posterior`, or `none` for the mean of the DDPM step.

    Raises:
        InputError: When the list or a choice is wrong.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """
    check_choice("solver", solver, ("ddpm", "ddim"))
    check_choice("noise", noise, ("posterior", "none"))
    check_scheduler(scheduler)
    config = scheduler.config
    found = check_steps(steps, int(config.num_train_timesteps))
    following = next_steps(found, stepping)
    table = scheduler.alphas_cumprod.detach().float().cpu()
    kind, variance = config.get("prediction_type", "epsilon"), config.get("variance_type", "fixed_small")
    rows = []
    for k, then in zip(found, following, strict=True):
        abar, abar_next = table[k], table[then] if then >= 0 else torch.tensor(1.0)
        if solver == "ddpm":
            rows.append(_ddpm_row(abar, abar_next, variance, noise == "posterior" and then >= 0))
        else:
            rows.append(_ddim_row(abar, abar_next, kind))
    return StepTable(
        found,
        following,
        tuple(table[k] ** 0.5 for k in found),
        tuple((1 - table[k]) ** 0.5 for k in found),
        tuple(rows),
        kind,
        float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None,
    )


def _ddpm_row(abar: Tensor, abar_next: Tensor, variance: str, noisy: bool) -> tuple[Tensor | None, ...]:
    # As in diffusers, operation by operation: see `step_table`.
    rest, rest_next = 1 - abar, 1 - abar_next
    alpha = abar / abar_next
    beta = 1 - alpha
    of_x0 = (abar_next**0.5 * beta) / rest
    of_x = alpha**0.5 * rest_next / rest
    small = torch.clamp(rest_next / rest * beta, min=1e-20)
    std = {
        "fixed_small": lambda: small**0.5,
        "fixed_small_log": lambda: torch.exp(0.5 * torch.log(small)),
        "fixed_large": lambda: beta**0.5,
    }[variance]()
    return of_x0, of_x, None, std if noisy else None


def _ddim_row(abar: Tensor, abar_next: Tensor, kind: str) -> tuple[Tensor | None, ...]:
    signal, sigma = abar**0.5, (1 - abar) ** 0.5
    sigma_next = (1 - abar_next) ** 0.5
    # eps as a combination of x and the output; x0 is clipped, eps is not.
    eps_of_x, eps_of_output = {
        "epsilon": lambda: (torch.zeros(()), torch.ones(())),
        "sample": lambda: (1 / sigma, -signal / sigma),
        "v_prediction": lambda: (sigma, signal),
    }[kind]()
    return abar_next**0.5, sigma_next * eps_of_x, sigma_next * eps_of_output, None


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers whose step is not the one of this module.

    Raises:
        UnsupportedHostError: Naming the setting.
    """
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedHostError(
            f"{type(scheduler).__name__} has no alphas_cumprod: real-time iteration steps on a discrete schedule, "
            "such as that of DDPMScheduler or DDIMScheduler"
        )
    variance = str(config.get("variance_type", "fixed_small"))
    if variance not in VARIANCES:
        raise UnsupportedHostError(
            f"variance_type {variance!r} is not supported; use one of {', '.join(VARIANCES)}"
        )
    if config.get("thresholding", False):
        raise UnsupportedHostError("dynamic thresholding is not supported; use clip_sample")
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise UnsupportedHostError(
            f"prediction_type {kind!r} is not supported; use one of {', '.join(PREDICTION_TYPES)}"
        )


def predict_clean_(x0: Tensor, x: Tensor, output: Tensor, table: StepTable, j: int) -> Tensor:
    """Write the clipped prediction of the clean actions at step j into `x0`.

    Args:
        x0: Where the result goes, [B, T, Da].
        x: Noisy actions [B, T, Da].
        output: The network's output [B, T, Da].
        table: The steps.
        j: Which of them.
    """
    if table.prediction_type == "epsilon":
        torch.mul(output, table.sigma[j], out=x0)
        torch.sub(x, x0, out=x0)
        x0.div_(table.signal[j])
    elif table.prediction_type == "sample":
        x0.copy_(output)
    else:
        # signal x - sigma output, without a second scratch.
        torch.div(x, table.sigma[j], out=x0)
        x0.mul_(table.signal[j]).sub_(output).mul_(table.sigma[j])
    return x0 if table.clip is None else x0.clamp_(-table.clip, table.clip)


def reverse_step_(x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, table: StepTable, j: int) -> Tensor:
    """Take reverse step j in place; at the clean end x becomes the clipped prediction.

    Args:
        x: Noisy actions [B, T, Da], overwritten.
        output: The network's output.
        x0: Scratch of the same shape.
        noise: Standard normals, overwritten; not read where the table's noise is 0.
        table: The steps.
        j: Which of them.
    """
    predict_clean_(x0, x, output, table, j)
    if table.next_timesteps[j] < 0:
        return x.copy_(x0)
    of_x0, of_x, of_output, of_noise = table.coefficients[j]
    x.mul_(of_x).add_(x0.mul_(of_x0))
    if of_output is not None:
        x.add_(torch.mul(output, of_output, out=x0))
    if of_noise is not None:
        x.add_(noise.mul_(of_noise))
    return x
