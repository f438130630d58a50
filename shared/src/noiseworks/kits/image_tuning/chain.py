"""The chain of reverse steps that a scheduler stands for: which levels, which kind of step, what is stochastic."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.interop import from_scheduler, is_flow_scheduler
from noiseworks.core.params import level_from_sigma_ve
from noiseworks.core.schedules import Level, expand
from noiseworks.core.steps import Step
from noiseworks.kits.image_tuning.options import Rollout
from noiseworks.kits.image_tuning.steps import (
    ScoredStep,
    ancestral_transition,
    ddim_transition,
    flow_transition,
    renoising_transition,
    scored,
)
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Kind = Literal["ddim", "renoising", "ancestral", "flow"]


@dataclass(frozen=True, eq=False)
class Chain:
    """T reverse steps, addressed by their places 0 (the noisiest) to T - 1.

    Attributes:
        kind: Which step: `ddim`, `renoising` (LCM and distilled models), `ancestral` (Euler) or `flow`.
        timesteps: What the network is told, in the scheduler's units [T].
        level: Level of each step's latents, float64 [T]; of a flow alpha = 1 - sigma.
        next_level: Level of what each step draws, float64 [T].
        prediction_type: What the network predicts.
        rollout: The settings that it was made of.
        start_scale: Factor of standard normal noise that makes first latents.
        stochastic: Steps that draw; a last step without noise is walked and not trained.
        fingerprint: Hash of all that decides about log-probabilities, for stored trajectories.
    """

    kind: Kind
    timesteps: Tensor
    level: Level
    next_level: Level
    prediction_type: str
    rollout: Rollout
    start_scale: float
    stochastic: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.timesteps)

    def network_input(self, x: Tensor, places: Tensor) -> Tensor:
        """Return latents as the network sees them: Euler's are scaled down, all others are what they are."""
        return x * expand(self.level.alpha[places], x) if self.kind == "ancestral" else x

    def transition(self, prediction: Tensor, x: Tensor, places: Tensor) -> Step:
        """Return the Gaussian of the next latents.

        Args:
            prediction: The network's (guided) prediction [B, ...].
            x: Latents [B, ...].
            places: The step of each sample, int64 [B] on the CPU.
        """
        level, next_level = Level(*(part[places] for part in self.level)), self._next(places)
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        if self.kind == "flow":
            largest = float(self.level.sigma[min(1, len(self) - 1)])
            noise_level = self.rollout.noise_level
            return flow_transition(prediction, x, level.sigma, next_level.sigma, noise_level, largest)
        if self.kind == "ddim":
            eta = self.rollout.eta
            return ddim_transition(prediction, x, level, next_level, self.prediction_type, eta)
        step = renoising_transition if self.kind == "renoising" else ancestral_transition
        return step(prediction, x, level, next_level, self.prediction_type)

    def step(
        self,
        prediction: Tensor,
        x: Tensor,
        places: Tensor,
        *,
        sample: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> ScoredStep:
        """Draw the next latents with `noise`, or score the ones that are given as `sample`.

        The other arguments are those of `transition`.
        """
        return scored(self.transition(prediction, x, places), x.dtype, sample=sample, noise=noise)

    def _next(self, places: Tensor) -> Level:
        return Level(*(part[places] for part in self.next_level))


def sampling_scheduler(scheduler: "SchedulerMixin") -> "SchedulerMixin":
    """Return the scheduler whose steps are trained: the host's own where it is stochastic, else DDIM of its settings.

    Raises:
        InputError: When it clips or thresholds x_0, which these log-probabilities do not follow.
    """
    from diffusers import DDIMScheduler

    name, config = type(scheduler).__name__, scheduler.config
    if is_flow_scheduler(scheduler) or name in ("LCMScheduler", "EulerAncestralDiscreteScheduler"):
        return scheduler
    clips = [key for key in ("clip_sample", "thresholding") if config.get(key, False)]
    if clips:
        raise InputError(
            f"the scheduler has {clips[0]}=True; build it with {clips[0]}=False to tune the model"
        )
    # Not every scheduler knows clipping, and DDIM's default is to clip.
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)


def chain_of(scheduler: "SchedulerMixin", rollout: Rollout) -> Chain:
    """Return the chain of a scheduler whose timesteps are set.

    DDIM goes from t to `max(t - N // T, 0)`, also at the end, where its own `final_alpha_cumprod` could be 1 and the
    last step deterministic.

    Args:
        scheduler: From `sampling_scheduler`, after `set_timesteps`.
        rollout: Its settings.

    Raises:
        InputError: When fewer than two steps draw.
    """
    name, host = type(scheduler).__name__, from_scheduler(scheduler)
    timesteps = scheduler.timesteps.detach().cpu()
    if host.is_flow:
        kind, sigmas = "flow", scheduler.sigmas.detach().double().cpu()
        level = Level(1 - sigmas, sigmas)
        level, next_level = Level(*(p[:-1] for p in level)), Level(*(p[1:] for p in level))
    elif name == "EulerAncestralDiscreteScheduler":
        kind, levels = "ancestral", level_from_sigma_ve(scheduler.sigmas.detach().double().cpu())
        level, next_level = Level(*(p[:-1] for p in levels)), Level(*(p[1:] for p in levels))
    elif name == "LCMScheduler":
        kind, level = "renoising", host.level(timesteps)
        ends = ((0, 1.0), (1, 0.0))
        next_level = Level(*(torch.cat([level[i][1:], level[i].new_tensor([end])]) for i, end in ends))
    else:
        kind, count = "ddim", host.num_train_timesteps
        before = (timesteps - count // rollout.num_inference_steps).clamp(0, count - 1)
        if bool((before == timesteps).any()):
            warnings.warn(
                "the last timestep is 0, where DDIM draws nothing: that step is left out", stacklevel=2
            )
            timesteps, before = timesteps[before != timesteps], before[before != timesteps]
        level, next_level = host.level(timesteps), host.level(before)
    ends_clean = kind in ("ancestral", "renoising")
    stochastic = len(timesteps) - ends_clean
    if stochastic < 1:
        raise InputError("the sampler draws in none of its steps; raise num_inference_steps")
    said = [kind, host.prediction_type, vars(rollout) | {"rollout_batch": 0}, timesteps.tolist()]
    said += [[part.tolist() for part in one] for one in (level, next_level)]
    fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    scale = 1.0 if kind in ("flow", "ddim", "renoising") else float(scheduler.init_noise_sigma)
    return Chain(
        kind, timesteps, level, next_level, host.prediction_type, rollout, scale, stochastic, fingerprint
    )
