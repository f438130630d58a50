"""The few-step sampler of a pipeline: which scheduler, and at which timesteps."""

import copy
import warnings
from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.pso.options import Sampler, Trained
from torch import Tensor, tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KNOWN = ("LCMScheduler", "EulerAncestralDiscreteScheduler")
SCRIPT = (750, 500, 250, 0)


def few_step(pipe: "DiffusionPipeline", sampler: Sampler) -> "DiffusionPipeline":
    """Give a pipeline the scheduler of a few-step sampler, and return it; call it with `guidance_scale=1` from then on.

    Renoising (LCM, DMD2): `x' = sqrt(a') x_0 + sqrt(1 - a') z` at timesteps `(n - k) (N // n) - 1`. Ancestral
    (SDXL-Turbo): Euler ancestral at the same timesteps. The last step of both draws nothing.

    Args:
        pipe: A pipeline of a distilled model.
        sampler: Which; `own` leaves the scheduler as it is.

    Raises:
        InputError: When its own scheduler is neither, or has not so many steps.
    """
    from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler

    n, config = sampler.num_inference_steps, pipe.scheduler.config
    if sampler.kind == "renoising":
        if config.num_train_timesteps % n:
            warnings.warn(
                f"{n} steps do not divide {config.num_train_timesteps}: the first is at "
                f"{n * (config.num_train_timesteps // n) - 1}",
                stacklevel=2,
            )
        pipe.scheduler = LCMScheduler.from_config(config, original_inference_steps=n, clip_sample=False)
    elif sampler.kind == "ancestral":
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    elif type(pipe.scheduler).__name__ not in KNOWN:
        raise InputError(
            f"the pipeline's own scheduler is {type(pipe.scheduler).__name__}; a few-step sampler is one of "
            f"{', '.join(KNOWN)}: set kind to renoising or ancestral"
        )
    try:
        copy.deepcopy(pipe.scheduler).set_timesteps(n)
    except ValueError as error:
        raise InputError(f"the pipeline's scheduler has no {n} steps: {error}") from error
    return pipe


def trained_timesteps(pipe: "DiffusionPipeline", sampler: Sampler, which: Trained) -> Tensor | None:
    """Return the timesteps at which pairs are compared, int64; None for all.

    Args:
        pipe: From `few_step`.
        sampler: Its sampler.
        which: The `sampler`'s own, those of the released `script`, or `all`.
    """
    if which == "all":
        return None
    if which == "script":
        return tensor(SCRIPT)
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sampler.num_inference_steps)
    return scheduler.timesteps.cpu().round().long()
