"""Ancestral sampling with everything known beforehand taken out of the loop.

With cached blocks a denoising step is so cheap that a scheduler's own arithmetic dominates it. Here the
coefficients of all steps are one table, the noise is drawn before the loop, in the order in which the
scheduler would draw it, and a step allocates nothing. The samples are those of `DDPMScheduler` up to rounding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.policies.protocols import DenoiserHost, Generators
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.kits.policies.schedulers import sampling_scheduler
from torch import Tensor


class StepCoefficients(NamedTuple):
    """x0 = clip(a x - b f), x_prev = c x0 + d x + s z, with the network's output f and unit noise z.

    Attributes:
        a: Of the sample in the clean prediction.
        b: Of the network's output in it.
        c: Of the clean prediction in the mean.
        d: Of the sample in the mean.
        s: Standard deviation of the noise; 0 at the last step.
    """

    a: float
    b: float
    c: float
    d: float
    s: float


def step_coefficients(scheduler: Any) -> list[StepCoefficients]:
    """Return the coefficients of every step of a `DDPMScheduler` whose timesteps are set (Ho et al. 2020, eq. 7).

    Raises:
        UnsupportedHostError: When the scheduler thresholds dynamically or its variance is not fixed and small.
    """
    config = scheduler.config
    if config.get("thresholding") or config.get("variance_type", "fixed_small") != "fixed_small":
        raise UnsupportedHostError(
            "only a small fixed variance without dynamic thresholding is supported by FusedDiffusionPolicy; use "
            "DiffusionPolicy on the attached host"
        )
    found, alphas = [], scheduler.alphas_cumprod.double()
    for t in scheduler.timesteps.tolist():
        previous = int(scheduler.previous_timestep(t))
        now, after = float(alphas[t]), float(alphas[previous]) if previous >= 0 else 1.0
        step = now / after
        a, b = {
            "epsilon": (now**-0.5, ((1 - now) / now) ** 0.5),
            "sample": (0.0, -1.0),
            "v_prediction": (now**0.5, (1 - now) ** 0.5),
        }[config.prediction_type]
        c, d = after**0.5 * (1 - step) / (1 - now), step**0.5 * (1 - after) / (1 - now)
        variance = max((1 - after) / (1 - now) * (1 - step), 1e-20)
        found.append(StepCoefficients(a, b, c, d, variance**0.5 if t > 0 else 0.0))
    return found


class FusedDiffusionPolicy(ReplanningPolicy):
    """The kit's `DiffusionPolicy` with the ancestral solver, with a lean loop.

    Args:
        host: The trained policy, with a plan attached or not.
        num_inference_steps: Steps of the schedule; all of the training's by default.
        last_steps: Run only so many of them, the last ones, from fresh noise all the same: a naive baseline.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed of each prediction; the host's own number by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
        UnsupportedHostError: When the scheduler's variance is not fixed and small.
    """

    def __init__(
        self,
        host: DenoiserHost,
        *,
        num_inference_steps: int | None = None,
        last_steps: int | None = None,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(host, num_envs=num_envs, n_action_steps=n_action_steps, seed=seed)
        sampler = sampling_scheduler(host.scheduler, "ddpm", num_inference_steps)
        steps = len(sampler.timesteps)
        last = steps if last_steps is None else last_steps
        check_number("last_steps", last, low=1, high=steps, integer=True)
        self.timesteps: list[Tensor] = list(sampler.timesteps)[-last:]
        self.coefficients = step_coefficients(sampler)[-last:]
        # A product with a Python number allocates that number as a tensor first.
        self.scales = [(torch.tensor(step.a), torch.tensor(step.d)) for step in self.coefficients]
        config = sampler.config
        self.clip = float(config.clip_sample_range) if config.clip_sample else None

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return a prediction from fresh noise."""
        device = _device(cond)
        noise = draw_noise((rows, self.host.horizon, self.host.action_dim), len(self.timesteps), generator)
        x, *noises = noise.to(device).unbind()
        clean = torch.empty_like(x)
        for index, (k, (_, b, c, _, s)) in enumerate(zip(self.timesteps, self.coefficients, strict=True)):
            a, d = self.scales[index]
            output = self.host.denoise(x, k.expand(rows), cond)
            torch.mul(x, a, out=clean).sub_(output, alpha=b)
            if self.clip is not None:
                clean.clamp_(-self.clip, self.clip)
            x.mul_(d).add_(clean, alpha=c)
            if s:
                x.add_(noises[index], alpha=s)
        return x, len(self.timesteps)


def draw_noise(shape: Sequence[int], steps: int, generator: Generators) -> Tensor:
    """Return the starting noise and that of all steps but the last, [steps, B, ...].

    One draw for each generator gives what single draws give one after the other where a row's number of
    elements is a multiple of 16 (torch's Box-Muller blocks on a CPU); elsewhere the stream is another one.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.randn((steps, *shape), generator=generator, device=device)
    one = (steps, *shape[1:])
    return torch.stack([torch.randn(one, generator=g, device=g.device) for g in generator], dim=1)


def _device(cond: Any) -> torch.device:
    while not isinstance(cond, Tensor):
        cond = next(iter(cond.values() if isinstance(cond, dict) else cond))
    return cond.device
