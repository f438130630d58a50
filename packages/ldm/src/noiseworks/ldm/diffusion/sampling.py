"""Sampling images from a latent diffusion model: conditions, guidance, sizes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.params import guide
from noiseworks.ldm.conditioning.conditioners import Condition
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import run_unet
from noiseworks.ldm.diffusion.samplers import OnStep, sample_latents
from noiseworks.ldm.diffusion.tiling import tiled_unet
from noiseworks.ldm.options import SampleSettings
from torch import Tensor, nn


@dataclass(frozen=True)
class Samples:
    """What sampling returns.

    Attributes:
        images: `[B, 3, H, W]` in [-1, 1].
        latents: Scaled latents `[B, C, h, w]`.
    """

    images: Tensor
    latents: Tensor


@contextmanager
def constant_condition(unet: nn.Module) -> Iterator[None]:
    """Compute cross-attention keys and values once while the block runs, as long as the same tensor comes in.

    The condition does not change over the steps of a run, so keys and values are those of the first step,
    bit for bit. A tensor object other than the last one is projected anew.
    """
    projections = [
        projection
        for name, module in unet.named_modules()
        if name.endswith("attn2")
        for projection in (module.to_k, module.to_v)
    ]
    for projection in projections:
        projection.forward = _remember(projection.forward)
    try:
        yield
    finally:
        for projection in projections:
            del projection.forward


def _remember(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    last: list[Tensor] = []

    def remembered(inputs: Tensor) -> Tensor:
        if not last or last[0] is not inputs:
            last[:] = inputs, function(inputs)
        return last[1]

    return remembered


def make_denoiser(
    model: LatentModel, condition: Condition, null: Condition | None, settings: SampleSettings
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (latents, timestep) -> prediction; guidance runs null and condition as one doubled batch.

    Args:
        model: The model.
        condition: The condition of every row.
        null: The null condition of every row, or None without guidance.
        settings: Guidance scale and tiles.
    """

    def predict(latents: Tensor, timestep: Tensor, given: Condition) -> Tensor:
        if settings.tiles is None:
            return run_unet(model.unet, latents, timestep, given)
        return tiled_unet(model.unet, latents, timestep, given, settings.tiles)

    if null is None:
        return lambda latents, timestep: predict(latents, timestep, condition)
    both = null.join(condition)

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        unconditional, conditional = predict(torch.cat([latents] * 2), timestep, both).chunk(2)
        return guide(unconditional, conditional, settings.guidance_scale)

    return guided


def sample(
    model: LatentModel,
    batch: Mapping[str, Any] | None = None,
    settings: SampleSettings | None = None,
    *,
    num_samples: int | None = None,
    on_step: OnStep | None = None,
) -> Samples:
    """Sample images.

    Args:
        model: The model.
        batch: The conditioner's keys, tensors `[B, ...]` or lists of length B; None for an unconditional
            model.
        settings: The sampler, by default 50 steps of DDIM.
        num_samples: B for an unconditional model; else the batch's own.
        on_step: See `sample_latents`; with several batches it is called for each.

    Raises:
        InputError: When sizes, batch or settings do not fit the model.
        NonFiniteError: When a step gives NaN or infinity.
    """
    settings = settings or SampleSettings()
    total = _count(model, batch, num_samples)
    side = model.unet.config.sample_size * model.factor
    shape = model.latent_shape(settings.height or side, settings.width or side)
    if settings.guidance_scale != 1 and model.conditioner is None:
        raise InputError(f"guidance_scale {settings.guidance_scale} needs a conditional model; leave it at 1")
    pieces = []
    for first in range(0, total, settings.batch_size):
        ids = range(first, min(first + settings.batch_size, total))
        part = {name: rows[ids.start : ids.stop] for name, rows in (batch or {}).items()}
        pieces.append(_sample_batch(model, part, shape, settings, ids, on_step))
    return Samples(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


@torch.no_grad()
def _sample_batch(
    model: LatentModel,
    batch: Mapping[str, Any],
    shape: tuple[int, int, int],
    settings: SampleSettings,
    ids: range,
    on_step: OnStep | None,
) -> tuple[Tensor, Tensor]:
    device = next(model.unet.parameters()).device
    batch = {name: rows.to(device) if isinstance(rows, Tensor) else rows for name, rows in batch.items()}
    condition, null = Condition(), None
    if model.conditioner is not None:
        condition = model.conditioner(batch)
        if settings.guidance_scale != 1:
            null = model.conditioner(batch, torch.ones(len(ids), dtype=torch.bool, device=device))
    _check_channels(model, condition, shape)
    with constant_condition(model.unet):
        latents = sample_latents(
            model,
            make_denoiser(model, condition, null, settings),
            shape,
            settings,
            sample_ids=ids,
            on_step=on_step,
        )
    return model.decode(latents, settings.tiles), latents


def _count(model: LatentModel, batch: Mapping[str, Any] | None, num_samples: int | None) -> int:
    if model.conditioner is None:
        check_number("num_samples", num_samples, low=1, integer=True)
        return num_samples
    if not batch:
        raise InputError("the model is conditional: give a batch with its conditioner's keys")
    lengths = {name: len(rows) for name, rows in batch.items()}
    total = next(iter(lengths.values()))
    if set(lengths.values()) != {total} or total < 1 or num_samples not in (None, total):
        raise InputError(
            f"the batch's entries need one common length of at least 1 (num_samples), got {lengths}"
        )
    return total


def _check_channels(model: LatentModel, condition: Condition, shape: tuple[int, int, int]) -> None:
    added = 0 if condition.concat is None else condition.concat.shape[1]
    wanted = model.unet.config.in_channels
    if shape[0] + added != wanted:
        raise InputError(
            f"the U-Net takes {wanted} channels, latent and condition have {shape[0]} + {added}; "
            "use the conditioner it was trained with"
        )
    if condition.concat is not None and condition.concat.shape[-2:] != shape[-2:]:
        raise InputError(
            f"the condition's maps are {tuple(condition.concat.shape[-2:])}, the latent is {shape[-2:]}; "
            "give height and width that fit the condition"
        )
