"""The samplers: DDIM with the paper code's conventions, PLMS and full DDPM, on latents (section 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core import grids
from noiseworks.core.checks import check_choice, check_finite, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec, bernoulli, normal
from noiseworks.core.params import to_epsilon, to_x0
from noiseworks.core.schedules import Level, add_noise
from noiseworks.core.steps import ddim_step
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.tiling import Tiles
from torch import Tensor

SAMPLERS = ("ddim", "plms", "ddpm")
_INITIAL, _STEP, _KNOWN, _DROPOUT = range(4)  # streams of random numbers of one sample


OnStep = Callable[[int, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class SampleSettings:
    """The sampler and its knobs.

    Attributes:
        sampler: `"ddim"`, `"plms"` (diffusers' PNDMScheduler) or `"ddpm"` (all T steps).
        num_inference_steps: S; not read by `"ddpm"`.
        eta: η of DDIM in [0, 1]; 0 is deterministic.
        guidance_scale: w in u + w (c - u); 1 is off.
        temperature: Factor of the noise added in every step.
        noise_dropout: Share of that noise set to zero (the rest is scaled up).
        quantize_x0: Whether a VQ model's x0 prediction is quantised in every step.
        tiles: Windows of the latent for large sizes; None runs the U-Net on the whole latent.

    Raises:
        InputError: When a value is out of range, or not read by the sampler.
    """

    sampler: str = "ddim"
    num_inference_steps: int = 50
    eta: float = 0.0
    guidance_scale: float = 1.0
    temperature: float = 1.0
    noise_dropout: float = 0.0
    quantize_x0: bool = False
    tiles: Tiles | None = None

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLERS)
        check_number("num_inference_steps", self.num_inference_steps, low=1, integer=True)
        check_number("eta", self.eta, low=0, high=1)
        check_number("guidance_scale", self.guidance_scale)
        check_number("temperature", self.temperature, low=0)
        check_number("noise_dropout", self.noise_dropout, low=0, high=1, high_open=True)
        if self.sampler == "plms" and (self.eta or self.noise_dropout or self.quantize_x0):
            raise InputError("plms is deterministic and takes no eta, noise_dropout or quantize_x0; use ddim")


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
    seed: int = 0,
    sample_ids: Sequence[int] = (0,),
    known: Tensor | None = None,
    mask: Tensor | None = None,
    correct: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return scaled latents `[B, C, h, w]`, one per sample id; sample i does not depend on the batch.

    Args:
        model: Read for schedule, prediction type and (quantised x0) the first stage.
        denoise: (latents, timestep) -> the U-Net's prediction.
        shape: (C, h, w).
        settings: The sampler.
        seed: Seed of the run.
        sample_ids: Number of each sample in the run.
        known: Scaled latents to keep where `mask` is 1, `[B, C, h, w]`: before each step they are noised to
            the step's level and put in, so the model completes the rest.
        mask: `[B or 1, 1, h, w]` in [0, 1].
        correct: (ε̂, latents, t) -> corrected ε̂, the authors' score corrector.
        on_step: Called after step i with (i, t, the step's input latents, its x0 prediction).

    Raises:
        NonFiniteError: When a step gives NaN or infinity.
    """
    device = next(model.unet.parameters()).device
    visited, abar_after = sampling_levels(model.scheduler.alphas_cumprod, settings)
    keys = [SeedSpec(seed, stream).keys(sample_ids, device) for stream in range(4)]
    counters = -(-torch.Size(shape).numel() // 4)
    latents = normal(keys[_INITIAL], shape)
    abar = model.scheduler.alphas_cumprod.double().cpu()
    prediction = model.scheduler.config.prediction_type
    if settings.sampler == "plms":
        plms = _plms_scheduler(model, settings)
        visited = plms.timesteps
    for index, t in enumerate(visited.tolist()):
        level = _level(abar[t])
        if known is not None:
            noise = normal(keys[_KNOWN], shape, counter0=index * counters)
            latents = add_noise(known, noise, level) * mask + (1 - mask) * latents
        output = denoise(latents, torch.tensor(t, device=device))
        epsilon = to_epsilon(output, latents, level, prediction)
        if correct is not None:
            epsilon = correct(epsilon, latents, t)
        x0 = to_x0(epsilon, latents, level, "epsilon")
        if settings.quantize_x0:
            x0 = quantize_latents(model, x0)
        before = latents
        if settings.sampler == "plms":
            latents = plms.step(epsilon, t, latents).prev_sample
        else:
            noise = _step_noise(keys, shape, index * counters, settings)
            eta = 1.0 if settings.sampler == "ddpm" else settings.eta
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


def _step_noise(
    keys: list[Tensor], shape: Sequence[int], counter: int, settings: SampleSettings
) -> Tensor | None:
    if settings.sampler == "ddim" and settings.eta == 0:
        return None
    noise = settings.temperature * normal(keys[_STEP], shape, counter0=counter)
    if settings.noise_dropout > 0:
        kept = ~bernoulli(keys[_DROPOUT], settings.noise_dropout, shape, counter0=counter)
        noise = noise * kept / (1 - settings.noise_dropout)
    return noise


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


def quantize_latents(model: LatentModel, latents: Tensor) -> Tensor:
    """Return scaled latents moved to the nearest codes of a VQ first stage."""
    return model.vae.quantize(latents / model.scale_factor)[0] * model.scale_factor
