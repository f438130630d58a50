"""The samplers: DDIM with the paper code's conventions, PLMS and full DDPM, on latents (section 3.2)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from noiseworks.core import grids
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.core.params import to_epsilon, to_x0
from noiseworks.core.schedules import Level
from noiseworks.core.steps import ddim_step
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.options import SampleSettings
from torch import Tensor

_INITIAL, _STEP = range(2)  # streams of random numbers of one sample

OnStep = Callable[[int, int, Tensor, Tensor], None]


def sampling_levels(alphas_cumprod: Tensor, settings: SampleSettings) -> tuple[Tensor, Tensor]:
    """Return the timesteps `[S]`, falling, and ᾱ after each of their steps, float64 `[S]`.

    DDIM visits {0, c, 2c, ...} + 1 with c = T // S and ends at ᾱ_0, not at 1, as the authors' code does,
    but in exactly S steps also where S does not divide T. DDPM visits all of T - 1 ... 0 and ends at 1.

    Raises:
        InputError: When S is not below T.
    """
    total = len(alphas_cumprod)
    abar = alphas_cumprod.double().cpu()
    if settings.sampler == "ddpm":
        visited = torch.arange(total - 1, -1, -1)
        return visited, torch.cat([abar[visited[1:]], abar.new_ones(1)])
    if settings.num_inference_steps >= total:
        raise InputError(
            f"num_inference_steps must be below {total}, got {settings.num_inference_steps}; "
            f"sampler='ddpm' takes all {total} steps"
        )
    visited = grids.timesteps("leading", total, settings.num_inference_steps, steps_offset=1)
    return visited, torch.cat([abar[visited[1:]], abar[:1]])


@torch.no_grad()
def sample_latents(
    model: LatentModel,
    denoise: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    settings: SampleSettings,
    *,
    sample_ids: Sequence[int] = (0,),
    on_step: OnStep | None = None,
) -> Tensor:
    """Return scaled latents `[B, C, h, w]`, one per sample id; sample i does not depend on the batch.

    Args:
        model: Read for schedule and prediction type.
        denoise: (latents, timestep) -> the U-Net's prediction.
        shape: (C, h, w).
        settings: The sampler and the seed of the run.
        sample_ids: Number of each sample in the run.
        on_step: Called after step i with (i, t, the step's input latents, its x0 prediction).

    Raises:
        NonFiniteError: When a step gives NaN or infinity.
    """
    device = next(model.unet.parameters()).device
    visited, abar_after = sampling_levels(model.scheduler.alphas_cumprod, settings)
    keys = [SeedSpec(settings.seed, stream).keys(sample_ids, device) for stream in (_INITIAL, _STEP)]
    counters = -(-torch.Size(shape).numel() // 4)
    latents = normal(keys[_INITIAL], shape)
    abar = model.scheduler.alphas_cumprod.double().cpu()
    prediction = model.scheduler.config.prediction_type
    if settings.sampler == "plms":
        plms = _plms_scheduler(model, settings)
        visited = plms.timesteps
    for index, t in enumerate(visited.tolist()):
        level = _level(abar[t])
        output = denoise(latents, torch.tensor(t, device=device))
        epsilon = to_epsilon(output, latents, level, prediction)
        x0 = to_x0(epsilon, latents, level, "epsilon")
        before = latents
        if settings.sampler == "plms":
            latents = plms.step(epsilon, t, latents).prev_sample
        else:
            eta = 1.0 if settings.sampler == "ddpm" else settings.eta
            noise = normal(keys[_STEP], shape, counter0=index * counters) if eta else None
            step = ddim_step(
                latents, x0, level, _level(abar_after[index]), eta=eta, noise=noise, epsilon=epsilon
            )
            latents = step.sample
        check_finite("latents", latents, index)
        if on_step is not None:
            on_step(index, t, before, x0)
    return latents


def _level(abar: Tensor) -> Level:
    return Level(abar.sqrt(), (1 - abar).sqrt())


def _plms_scheduler(model: LatentModel, settings: SampleSettings) -> Any:
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler.from_config(
        model.scheduler.config,
        skip_prk_steps=True,
        prediction_type="epsilon",
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(settings.num_inference_steps)
    return scheduler
