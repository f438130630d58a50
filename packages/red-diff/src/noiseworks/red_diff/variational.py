"""RED-diff: an inverse problem as stochastic optimisation of one image (sections 3 and 4 of the paper).

KL(N(mu, s^2 I) || p(x_0 | y)) with s -> 0 is a data term plus score matching at every noise level. Without the
network's Jacobian its gradient at level t is

    v A^T (A mu - y) / M  +  w_t (eps(x_t, t) - eps) / N,      x_t = alpha mu + sigma eps,   w_t = lambda sigma / alpha,

the pull towards the data plus that towards the denoised image. Adam follows it through falling noise levels.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import add_noise, expand
from noiseworks.red_diff.operators import Operator
from noiseworks.red_diff.options import RedDiff
from noiseworks.red_diff.priors import X0, XT, Prior, noise_for
from noiseworks.red_diff.weights import ordered, timestep_grid, weight_of
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: Steps done.
        timestep: The level that the step visited.
        image: mu after the step, `[B, C, H, W]`.
        before: The image of which the step took the gradient; the released code saves this one of the last step.
        state: Returns what a run goes on from, as the `start` of `steps_of`: image, optimiser and steps done.
        loss: Computes v/2 mean |y - f|^2 + w mean((eps_hat - eps) x) of each image, `[B]`, which the released code
            prints (with sums for `reduction="sum"`).
    """

    step: int
    timestep: int
    image: Tensor
    before: Tensor
    state: Callable[[], dict[str, Any]]
    loss: Callable[[], Tensor]


def prior_gradient(prior: Prior, image: Tensor, noise: Tensor, t: int, weight: Tensor) -> Tensor:
    """Return `w (eps_hat(alpha x + sigma eps, t) - eps)`, without gradients of the network, `[B, C, H, W]`.

    Args:
        prior: The prior.
        image: x, clean.
        noise: eps.
        t: Index of the level.
        weight: w.
    """
    with torch.no_grad():
        noisy = add_noise(image, noise, prior.level(t))
        return expand(weight, image) * (prior.epsilon(noisy, t) - noise)


def steps_of(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    settings: RedDiff = RedDiff(),
    *,
    seeds: Sequence[int] | None = None,
    start: "Tensor | Mapping[str, Any] | None" = None,
) -> Iterator[Progress]:
    """Yield the state of a run after each of its steps.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements, `[B, ...]`.
        settings: How it runs.
        seeds: One a sample, by default 0, 1, ...; a sample does not depend on its batch.
        start: Image to start from, by default the operator's (for linear ones A^+ y); or the `state()` of an earlier
            run with the same arguments, which goes on to the same numbers.

    Raises:
        InputError: When shapes do not fit, or the steps do not divide the timesteps.
        NonFiniteError: When the image is no longer finite.
    """
    operator.check(y)
    if operator.shape != prior.shape:
        raise InputError(f"the model works on {prior.shape} and the operator on {operator.shape}")
    seeds = range(len(y)) if seeds is None else seeds
    grid = timestep_grid(settings.num_steps, prior.schedule.num_steps)
    times = ordered(grid, settings.order, fixed=settings.fixed_timestep, seed=seeds[0])
    state = start if isinstance(start, Mapping) else {"image": start, "optimizer": None, "step": 0}
    mu = (operator.start(y) if start is None else state["image"]).detach().clone()
    optimizer, done = _optimizer(mu, settings), state["step"]
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    pixels, values = mu[0].numel(), operator.measurements
    if settings.reduction == "sum":
        pixels = values = 1

    for step, t in enumerate(times[done:], done):
        before = mu.clone()
        x0 = before + settings.sigma_x0 * noise_for(mu, seeds, X0, step) if settings.sigma_x0 else before
        weight = settings.strength * weight_of(prior.level(t), settings.weight)
        pull = prior_gradient(prior, x0, noise_for(mu, seeds, XT, step), t, weight) / pixels
        data = settings.data_weight / values
        mu.grad = pull + data * operator.gradient(x0, y) if data else pull
        optimizer.step()
        if settings.clamp:
            mu.clamp_(-1, 1)
        kept = partial(_state, mu, optimizer, step + 1)
        yield Progress(step + 1, t, mu, x0, kept, partial(_loss, operator, x0, y, pull, data))
    check_finite("restored image", mu)


def _optimizer(mu: Tensor, settings: RedDiff) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD([mu], settings.learning_rate)
    return torch.optim.Adam([mu], settings.learning_rate, betas=(0.9, settings.beta2))


def _state(mu: Tensor, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    return {"image": mu.clone(), "optimizer": copy.deepcopy(optimizer.state_dict()), "step": step}


def _loss(operator: Operator, x0: Tensor, y: Tensor, pull: Tensor, data: float) -> Tensor:
    return (pull * x0).flatten(1).sum(1) + 0.5 * data * residual(operator, x0, y).square()


@torch.no_grad()
def residual(operator: Operator, x: Tensor, y: Tensor) -> Tensor:
    """Return `|y - f(x)|` of each image, `[B]`."""
    return (y - operator.forward(x)).flatten(1).norm(dim=1)
