"""Looking at and steering where a run is going: the guided prediction, the denoised sample, its picture, a score."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.conditions import role_rows
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, latent_channels_of
from noiseworks.kits.diffusers_hosts.levels import noise_level, prediction_type_of, score_slope, to_x0
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def latents_of(call: DenoiserCall) -> Tensor:
    """Return x_t, `[B, C, h, w]` (packed `[B, tokens, C]` on FLUX), without the host's further channels."""
    return _latents(call, call.sample[: call.run.batch])


def image_size(call: DenoiserCall) -> tuple[int, int] | None:
    """Return (H, W) that the host was called with, for `decode_latents`; None where it was left to the host."""
    height, width = call.run.setting("height"), call.run.setting("width")
    return (height, width) if height and width else None


def guided_prediction(call: DenoiserCall, output: Any) -> Tensor:
    """Return the prediction that the host makes of a call's output by its own guidance formula.

    e_u + s (e_c - e_u), rescaled where the host does so; e_u + s_I (e_i - e_u) + s (e_c - e_i) for
    InstructPix2Pix. Where each role has its own call, this is the conditional prediction in the "cond" call and
    the guided one in the "uncond" call.

    Args:
        call: The call.
        output: The denoiser's output for all rows of it.

    Returns:
        `[B, C, h, w]`, like `latents_of`.

    Raises:
        InputError: When the run is guided and the host does not say its scale (in a loop of one's own).
    """
    run, prediction = call.run, prediction_of(output)
    if call.role == "uncond":
        parts = [prediction_of(run.cond_output), prediction]
    elif call.role is None and run.guided:
        parts = [prediction[role_rows(call, role).to(prediction.device)] for role in run.layout.chain]
    else:
        parts = [prediction]
    parts = [_latents(call, part) for part in parts]
    if len(parts) == 1:
        return parts[0]
    scales = (
        [run.guidance_scale] if len(parts) == 2 else [run.guidance_scale, run.setting("image_guidance_scale")]
    )
    if None in scales:
        raise InputError("a loop of your own has no guidance scale to read: combine the predictions there")
    guided = parts[-1]
    for scale, (more, less) in zip(reversed(scales), reversed(list(pairwise(parts))), strict=True):
        guided = guided + scale * (more - less)
    if rescale := run.setting("guidance_rescale"):
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        guided = rescale_noise_cfg(guided, parts[0], guidance_rescale=rescale)
    return guided


def forecast(call: DenoiserCall, output: Any) -> Tensor:
    """Return the denoised sample x_0 that the host's guided prediction implies, `[B, C, h, w]`.

    Args:
        call: The call.
        output: The denoiser's output for all rows of it.
    """
    level, kind = noise_level(call.run.scheduler, call.timestep), prediction_type_of(call.run.scheduler)
    return to_x0(guided_prediction(call, output), latents_of(call), *level, kind)


def decode_latents(pipe: "DiffusionPipeline", latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the images of latents as the host decodes them, `[B, 3, H, W]` in [0, 1]; gradients pass.

    Args:
        pipe: The pipeline.
        latents: `[B, C, h, w]`, packed `[B, tokens, C]` on FLUX.
        size: (H, W) of packed latents, by default square.
    """
    if latents.ndim == 3:
        side = round(latents.shape[1] ** 0.5) * 2 * pipe.vae_scale_factor
        latents = pipe._unpack_latents(latents, *(size or (side, side)), pipe.vae_scale_factor)
    vae, config = pipe.vae, pipe.vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None and latents.shape[1] == len(mean):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(latents) for v in (mean, std))
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor
        latents = latents + (config.get("shift_factor") or 0.0)
    narrow = vae.dtype if vae.dtype == torch.float16 and config.get("force_upcast") else None
    if narrow is not None:  # such a decoder overflows in half precision
        vae.to(torch.float32)
    try:
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finally:
        if narrow is not None:
            vae.to(narrow)
    return (images * 0.5 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode_images(pipe: "DiffusionPipeline", images: Tensor) -> Tensor:
    """Return the latents that a host's denoiser knows images by, in float32 on the CPU.

    They are the means of the first stage's posteriors; `decode_latents` is the way back.

    Args:
        pipe: The pipeline.
        images: [B, 3, H, W] in [0, 1].
    """
    vae, config = pipe.vae, pipe.vae.config
    narrow = vae.dtype if vae.dtype == torch.float16 and config.get("force_upcast") else None
    if narrow is not None:  # such an encoder overflows in half precision
        vae.to(torch.float32)
    try:
        pixels = images.to(vae.device, vae.dtype) * 2 - 1
        latents = vae.encode(pixels).latent_dist.mode().float()
    finally:
        if narrow is not None:
            vae.to(narrow)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None and latents.shape[1] == len(mean):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(latents) for v in (mean, std))
        latents = (latents - mean) * config.scaling_factor / std
    else:
        latents = (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
    if hasattr(pipe, "_pack_latents"):
        latents = pipe._pack_latents(latents, *latents.shape)
    return latents.cpu()


def score_of(call: DenoiserCall, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a log-probability with respect to x_t, `[B, C, h, w]`, for `add_score`.

    Args:
        call: The call.
        log_prob: `log_prob(x_t)` with `[B]` values, such as a classifier's of noisy latents at `call.timestep`.
    """
    with torch.enable_grad():
        latents = latents_of(call).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(latents).sum(), latents)
    return gradient


def add_score(call: DenoiserCall, output: Any, score: Tensor) -> Any:
    """Return an output whose predictions are steered by a score: classifier and energy guidance.

    The noise prediction of every role becomes e - sigma score (Dhariwal and Nichol 2021, algorithm 2), so that
    the host's own guidance formula gives the guided prediction steered by the same amount; x_0 moves by
    sigma^2 / alpha score. Other prediction types move by what that is for them. Where alpha is 0 (the first step
    of a flow model) x_t tells nothing of x_0, and nothing is moved.

    Args:
        call: The call.
        output: The denoiser's output for all rows of it.
        score: Gradient of a log-probability with respect to x_t, times its guidance scale, like `latents_of`.
    """
    scheduler = call.run.scheduler
    (alpha, sigma), kind = noise_level(scheduler, call.timestep), prediction_type_of(scheduler)
    if alpha == 0:
        return output
    slope = score_slope(alpha, sigma, kind)
    prediction = prediction_of(output).clone()
    moved = (slope * score).to(prediction.dtype)
    _latents(call, prediction).add_(moved.repeat(len(prediction) // len(moved), *[1] * (moved.ndim - 1)))
    return replace_prediction(output, prediction)


def _latents(call: DenoiserCall, values: Tensor) -> Tensor:
    if call.run.layout.calls == "contexts":
        return values
    return values[:, : latent_channels_of(call.run.pipe)]
