"""One round: denoising with inpainted key poses, and the policy after each step (section 3.3, algorithm 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.grids import timesteps, with_clean_end
from noiseworks.core.interop import from_scheduler
from noiseworks.core.schedules import TableSchedule
from noiseworks.core.steps import ddim_step, ddpm_step
from noiseworks.dip.network import motion_schedule
from noiseworks.dip.options import Sampling
from noiseworks.dip.policy import ImplicitPolicy
from noiseworks.dip.rewards import Setting
from noiseworks.kits.motion.body import COUNT, NUMBERS
from torch import Tensor


class Denoiser(Protocol):
    """A motion model that the sampler can use; `MotionModel`, or an adapter round another one."""

    def embed(self, points: Tensor, mask: Tensor) -> Tensor | None:
        """Return what `__call__` takes as hint, of joint positions [B, F, 22, 3] and their mask [B, F, 22]."""
        ...

    def __call__(self, x: Tensor, t: Tensor, action: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return the clean motion [B, F, 69] of a noisy one, at indices t [B] of the schedule."""
        ...


@dataclass(frozen=True)
class Round:
    """What a round is generated from.

    Attributes:
        setting: Goals, local frame, actions, scene.
        poses: Key poses, [B, F, 69].
        keys: Which of their numbers are inpainted, [B, F, 69].
        hints: Positions for the control branch, [B, F, 22, 3].
        hinted: Which of them there are, [B, F, 22].
    """

    setting: Setting
    poses: Tensor
    keys: Tensor
    hints: Tensor
    hinted: Tensor

    def __post_init__(self) -> None:
        batch, frames = self.poses.shape[:2]
        wanted = {
            "poses": (self.poses, (batch, frames, NUMBERS)),
            "keys": (self.keys, (batch, frames, NUMBERS)),
            "hints": (self.hints, (batch, frames, COUNT, 3)),
            "hinted": (self.hinted, (batch, frames, COUNT)),
            "goals": (self.setting.goals.points, (batch, frames, COUNT, 3)),
            "goals' mask": (self.setting.goals.mask, (batch, frames, COUNT)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise InputError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if self.setting.scene is not None and len(self.setting.scene) != batch:
            raise InputError(f"{batch} motions need as many scenes, got {len(self.setting.scene)}")


class DipSampler:
    """Samples rounds.

    Args:
        model: The denoiser; its parameters must not need gradients.
        policy: What is optimised on the way; None for plain denoising.
        options: Steps, inpainting, control.
        schedule: Of the denoiser: a table, or a diffusers scheduler; by default the cosine of 1000 steps.

    Raises:
        InputError: When the schedule is not a table as long as the steps asked for.
    """

    def __init__(
        self,
        model: Denoiser,
        policy: ImplicitPolicy | None,
        options: Sampling = Sampling(),
        schedule: object | None = None,
    ) -> None:
        if schedule is None:
            schedule = motion_schedule()
        elif not isinstance(schedule, TableSchedule):
            schedule = from_scheduler(schedule).schedule
        if not isinstance(schedule, TableSchedule):
            raise InputError("the schedule of a motion model is a table of noise levels, not a flow")
        self.model, self.policy, self.options, self.schedule = model, policy, options, schedule
        self.grid = with_clean_end(timesteps("linspace", schedule.num_steps, options.steps)).tolist()

    @torch.no_grad()
    def sample(
        self,
        round: Round,
        generators: Sequence[torch.Generator],
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return motions [B, F, 69] in the round's local frame.

        A motion depends on its own generator alone, not on the batch.

        Args:
            round: Goals, key poses and hints.
            generators: One a motion.
            progress: Called with (steps done, all).
        """
        options, poses = self.options, round.poses
        x = draw(poses, generators)
        action = round.setting.actions
        hint = self.model.embed(round.hints, round.hinted) if options.hinted else None
        for index, (t, s) in enumerate(zip(self.grid[:-1], self.grid[1:], strict=True)):
            clean = self.model(x, self._at(t, x), action, hint)
            if t >= options.inpaint_until:
                clean = torch.where(round.keys, poses, clean)
            level, lower = self.schedule.level(t), self.schedule.level(s)
            if options.eta is None:
                step = ddpm_step(x, clean, level, lower)
            else:
                step = ddim_step(x, clean, level, lower, eta=options.eta)
            mean = step.mean.to(x)
            if self.policy is not None and options.gradient_steps and t >= options.stop_below and s >= 0:
                # Of one step of the whole schedule, however many are left out: it is the length of the gradient steps,
                # and the variance of a long step would make them as much too long.
                variance = float(ddpm_step(x, clean, level, self.schedule.level(t - 1)).std.max()) ** 2
                at = self._at(s, x)
                mean = self.policy.optimise(
                    mean, variance, lambda mu, at=at: self.model(mu, at, action, hint), round.setting
                )
            x = mean + step.std.to(x) * draw(poses, generators) if s >= 0 else mean
            if progress is not None:
                progress(index + 1, len(self.grid) - 1)
        return x

    def _at(self, t: int, x: Tensor) -> Tensor:
        return torch.full((len(x),), t, device=x.device)


def draw(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return standard normal noise of a batch's shape, row i from generator i."""
    rows = [torch.randn(like.shape[1:], generator=one, dtype=like.dtype) for one in generators]
    return torch.stack(rows).to(like.device)
