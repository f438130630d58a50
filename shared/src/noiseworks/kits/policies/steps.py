"""Lists of denoising steps as tables of coefficients, and the reverse step that reads them, in place.

With abar_k the cumulative product of the training schedule (k = 0 the least noisy), x0 the clipped prediction of
the clean actions and k' the level that a step leads to, the DDPM step (Ho et al. 2020, eq. 7) is

    x' = sqrt(abar_k') beta / (1 - abar_k) x0 + sqrt(alpha) (1 - abar_k') / (1 - abar_k) x + sigma z,
    alpha = abar_k / abar_k',  beta = 1 - alpha,  sigma^2 = max(beta (1 - abar_k') / (1 - abar_k), 1e-20),

and the DDIM step (Song et al. 2021, eq. 12 with eta 0) is x' = sqrt(abar_k') x0 + sqrt(1 - abar_k') eps. Both are
linear in x0, x, the network's output and z, so a step is a row of four numbers; a number may also be one for each
position of the sequence. Flow matching's Euler step, x' = x + (sigma' - sigma) u with u noise less data, is such a
row too (Lipman et al. 2023).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies.schedulers import Solver, sampling_scheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
FLOW = "flow_prediction"
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


class StepRow(NamedTuple):
    """x' = `of_x0` x0 + `of_x` x + `of_output` output + `of_noise` z; None where a part is left out.

    Attributes:
        of_x0: Of the predicted clean actions; a tensor that broadcasts to [B, T, Da], as all of them.
        of_x: Of the noisy actions.
        of_output: Of the network's output.
        of_noise: Of standard normals.
    """

    of_x0: Tensor
    of_x: Tensor | None
    of_output: Tensor | None
    of_noise: Tensor | None


@dataclass(frozen=True)
class StepTable:
    """A list of steps with everything but the network worked out.

    Attributes:
        timesteps: Indices k at which the network is called, decreasing; or one for each position, tuples of T.
        signal: sqrt(abar_k) of each step, tensors [] or [T, 1].
        sigma: sqrt(1 - abar_k) of each step, likewise.
        coefficients: A row for each step. Tensors, as numbers would be made into tensors anew at every use.
        prediction_type: What the network predicts: `epsilon`, `sample`, `v_prediction` or, for flow matching,
            `flow_prediction`, the noise less the data.
        clip: Bound of the predicted clean actions, or None.
    """

    timesteps: tuple[int, ...] | tuple[tuple[int, ...], ...]
    signal: tuple[Tensor, ...]
    sigma: tuple[Tensor, ...]
    coefficients: tuple[StepRow, ...]
    prediction_type: str
    clip: float | None

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, steps: int) -> "StepTable":
        """Return the table of the last so many steps.

        Raises:
            InputError: When there are fewer.
        """
        check_number("last steps", steps, low=1, high=len(self), integer=True)
        parts = ("timesteps", "signal", "sigma", "coefficients")
        return replace(self, **{name: getattr(self, name)[-steps:] for name in parts})


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


def step_table(
    scheduler: Any,
    steps: Sequence[int],
    following: Sequence[int] | None = None,
    *,
    solver: Solver = "ddpm",
    noisy: bool = True,
) -> StepTable:
    """Return the coefficients of a list of steps under a diffusers scheduler's schedule.

    Numbers are computed in float32 in the order of diffusers' DDPM scheduler, so that a full list repeats that
    sampler bit for bit.

    Args:
        scheduler: A diffusers scheduler with `alphas_cumprod`, or flow matching's Euler scheduler without a shift.
        steps: Decreasing indices.
        following: Level that each step leads to, -1 for the clean end; by default the list's next index.
        solver: `ddpm` or `ddim` (deterministic).
        noisy: Whether DDPM steps draw noise, or take their mean.

    Raises:
        InputError: When the list or a choice is wrong.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """
    check_choice("solver", solver, ("ddpm", "ddim"))
    if is_flow(scheduler):
        return _flow_table(scheduler, steps, following, solver)
    check_scheduler(scheduler)
    found = check_steps(steps, int(scheduler.config.num_train_timesteps))
    following = (*found[1:], -1) if following is None else tuple(following)
    table = scheduler.alphas_cumprod.detach().float().cpu()
    pairs = [
        (table[k], table[then] if then >= 0 else _end(scheduler, solver, table))
        for k, then in zip(found, following, strict=True)
    ]
    return StepTable(
        found,
        tuple(abar**0.5 for abar, _ in pairs),
        tuple((1 - abar) ** 0.5 for abar, _ in pairs),
        tuple(step_row(scheduler, *pair, solver=solver, noisy=noisy) for pair in pairs),
        scheduler.config.get("prediction_type", "epsilon"),
        clip_of(scheduler),
    )


def sampler_table(scheduler: Any, solver: Solver, num_inference_steps: int | None = None) -> StepTable:
    """Return the steps that diffusers' sampler takes on a checkpoint's own schedule.

    Args:
        scheduler: The host's diffusers scheduler; left as it is.
        solver: `ddpm` or `ddim`.
        num_inference_steps: Steps of a run; by default all of the training's.

    Raises:
        InputError: When the number of steps is out of range.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """
    if is_flow(scheduler):
        count = scheduler.config.num_train_timesteps
        calls = count if num_inference_steps is None else num_inference_steps
        check_number("num_inference_steps", calls, low=1, high=count, integer=True)
        levels = [round(count * (1 - j / calls)) - 1 for j in range(calls)]
        return step_table(scheduler, levels, [*levels[1:], -1], solver=solver)
    check_scheduler(scheduler)
    sampler = sampling_scheduler(scheduler, solver, num_inference_steps)
    steps = sampler.timesteps.tolist()
    # A spacing may visit other levels than the equal strides that both of diffusers' samplers step by.
    stride = sampler.config.num_train_timesteps // len(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some spacings end above 0
        return step_table(sampler, steps, [k - stride for k in steps], solver=solver)


def step_row(
    scheduler: Any, abar: Tensor, abar_next: Tensor | None, *, solver: Solver, noisy: bool = True
) -> StepRow:
    """Return the coefficients of the step from one level to another, in the type of the levels.

    Args:
        scheduler: Says what the network predicts and which variance a DDPM step has.
        abar: Cumulative product at the level of the sample, [].
        abar_next: At the level that the step leads to; None for the clean end.
        solver: `ddpm` or `ddim`.
        noisy: Whether a DDPM step draws noise.
    """
    if abar_next is None:
        return StepRow(torch.ones_like(abar), None, None, None)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if solver == "ddpm":
        return _ddpm_row(abar, abar_next, scheduler.config.get("variance_type", "fixed_small"), noisy)
    return _ddim_row(abar, abar_next, kind)


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler is flow matching's Euler scheduler on equal levels, sigma = (k + 1) / N."""
    config = getattr(scheduler, "config", {})
    curved = ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    return (
        type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        and config.get("shift") == 1.0
        and not any(config.get(name) for name in curved)
    )


def flow_times(count: int) -> Tensor:
    """Return the times of a flow's levels, [N + 1]: 0 is noise, 1 is clean, level k lies at entry N - 1 - k."""
    return torch.linspace(0, 1, count + 1)


def _flow_table(
    scheduler: Any, steps: Sequence[int], following: Sequence[int] | None, solver: Solver
) -> StepTable:
    """Return Euler steps x' = x + (t - t') u along the flow, with u the network's noise less data."""
    if solver != "ddim":
        raise InputError(
            "a flow-matching policy has no DDPM step: use solver='ddim', which is Euler's step there"
        )
    count = int(scheduler.config.num_train_timesteps)
    found = check_steps(steps, count)
    following = (*found[1:], -1) if following is None else tuple(following)
    times = flow_times(count)
    place = [times[count - 1 - k] for k in found]
    ends = [times[count - 1 - k] for k in following]
    zero, one = torch.zeros(()), torch.ones(())
    rows = (StepRow(zero, one, -(end - begin), None) for begin, end in zip(place, ends, strict=True))
    return StepTable(found, tuple(place), tuple(1 - t for t in place), tuple(rows), FLOW, None)


def _end(scheduler: Any, solver: Solver, table: Tensor) -> Tensor | None:
    """Return the level after the last step; None when it is clean, as it is but for some DDIM schedulers."""
    clean = solver == "ddpm" or scheduler.config.get("set_alpha_to_one", True)
    return None if clean else table[0]


def _ddpm_row(abar: Tensor, abar_next: Tensor, variance: str, noisy: bool) -> StepRow:
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
    return StepRow(of_x0, of_x, None, std if noisy else None)


def _ddim_row(abar: Tensor, abar_next: Tensor, kind: str) -> StepRow:
    signal, sigma = abar**0.5, (1 - abar) ** 0.5
    sigma_next = (1 - abar_next) ** 0.5
    # eps as a combination of x and the output; x0 is clipped, eps is not.
    if kind == "epsilon":
        return StepRow(abar_next**0.5, None, sigma_next, None)
    of_x, of_output = (1 / sigma, -signal / sigma) if kind == "sample" else (sigma, signal)
    return StepRow(abar_next**0.5, sigma_next * of_x, sigma_next * of_output, None)


def clip_of(scheduler: Any) -> float | None:
    """Return the bound of the predicted clean actions, or None."""
    config = scheduler.config
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers whose step is not the one of this module.

    Raises:
        UnsupportedHostError: Naming the setting.
    """
    config = getattr(scheduler, "config", None)
    if config is None or not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedHostError(
            f"{type(scheduler).__name__} has no alphas_cumprod: policies step on a discrete schedule, such as that "
            "of DDPMScheduler or DDIMScheduler"
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
    elif table.prediction_type == FLOW:
        torch.mul(output, table.sigma[j], out=x0)
        torch.sub(x, x0, out=x0)
    else:
        # signal x - sigma output, without a second scratch.
        torch.div(x, table.sigma[j], out=x0)
        x0.mul_(table.signal[j]).sub_(output).mul_(table.sigma[j])
    return x0 if table.clip is None else x0.clamp_(-table.clip, table.clip)


def reverse_step_(x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, table: StepTable, j: int) -> Tensor:
    """Take reverse step j in place and without allocating; at the clean end x becomes the clipped prediction.

    Args:
        x: Noisy actions [B, T, Da], overwritten.
        output: The network's output.
        x0: Scratch of the same shape.
        noise: Standard normals, overwritten; not read where the table's step draws none.
        table: The steps.
        j: Which of them.
    """
    predict_clean_(x0, x, output, table, j)
    of_x0, of_x, of_output, of_noise = table.coefficients[j]
    if of_x is None:
        torch.mul(x0, of_x0, out=x)
    else:
        x.mul_(of_x).add_(x0.mul_(of_x0))
    if of_output is not None:
        x.add_(torch.mul(output, of_output, out=x0))
    if of_noise is not None:
        x.add_(noise.mul_(of_noise))
    return x
