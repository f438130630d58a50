"""Scores of the units by the baselines: magnitude of their weights, first-order Taylor at one step, random."""

from typing import TYPE_CHECKING

import torch
from noiseworks.core.noise import mix64
from noiseworks.ecodiff.masks import NAME
from noiseworks.ecodiff.objective import Runs, record
from noiseworks.kits.diffusers_hosts.levels import noise_level, prediction_type_of
from noiseworks.kits.diffusers_hosts.rows import prediction_of
from noiseworks.kits.diffusers_hosts.units import Units, mask_units
from torch import Tensor, nn

if TYPE_CHECKING:
    from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall


def random_scores(units: Units, seed: int) -> dict[str, Tensor]:
    """Return uniform scores."""
    generator = torch.Generator().manual_seed(seed)
    return {path: torch.rand(group.count, generator=generator) for path, group in units.groups.items()}


@torch.no_grad()
def magnitude_scores(model: nn.Module, units: Units) -> dict[str, Tensor]:
    """Return the root mean square of the weights that belong to each unit, `[count]` by path.

    The mean makes units of layers of different sizes comparable, as one ranking over all layers needs it.
    """
    scores = {}
    for path, group in units.groups.items():
        squares, size = torch.zeros(group.count), 0
        for layer in group.rows:
            weight = model.get_submodule(layer).weight.float().cpu()
            squares += weight.square().sum(dim=1).view(group.copies, group.count, group.width).sum(dim=(0, 2))
            size += weight.shape[1] * group.copies * group.width
        for layer, first in group.columns:
            weight = model.get_submodule(layer).weight.float().cpu()
            part = weight[:, first : first + group.count * group.width]
            squares += part.square().sum(dim=0).view(group.count, group.width).sum(dim=1)
            size += weight.shape[0] * group.width
        scores[path] = (squares / size).sqrt()
    return scores


def taylor_scores(model: nn.Module, units: Units, runs: Runs, seed: int = 0) -> dict[str, Tensor]:
    """Return |∂L/∂m| at m = 1 for the denoising loss L at a random step of each batch, `[count]` by path.

    L is the model's own training loss on its own samples: they are noised anew, and the noise is to be told.

    Args:
        model: The denoiser.
        units: Its units.
        runs: The calibration prompts.
        seed: Of the steps and the noise.
    """
    masks = {path: torch.ones(group.count, requires_grad=True) for path, group in units.groups.items()}
    size = runs.sampling.batch_size
    scores = {path: torch.zeros(group.count) for path, group in units.groups.items()}
    for first in range(0, len(runs.prompts), size):
        rows = range(first, min(first + size, len(runs.prompts)))
        clean = runs.latents(rows)
        step = mix64(seed, first) % runs.sampling.num_inference_steps
        for call, _ in record(runs, rows, step):
            with mask_units(model, units, masks, NAME):
                loss = _denoising_loss(call, clean, mix64(seed, first, 1) >> 1)
                gradients = torch.autograd.grad(loss, list(masks.values()), allow_unused=True)
            for path, gradient in zip(masks, gradients, strict=True):
                scores[path] += 0 if gradient is None else gradient.abs().cpu()
    return scores


def _denoising_loss(call: "DenoiserCall", clean: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    scheduler = call.run.scheduler
    alpha, sigma = noise_level(scheduler, call.timestep)
    noisy = alpha * clean + sigma * noise
    target = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * clean,
        "sample": clean,
        "flow_prediction": noise - clean,
    }[prediction_type_of(scheduler)]
    copies = call.rows // len(clean)
    noisy, target = (t.repeat(copies, *[1] * (t.ndim - 1)).to(call.sample.dtype) for t in (noisy, target))
    name = call.run.layout.sample
    args, kwargs = call.args, dict(call.kwargs)
    if args:
        args = (noisy, *args[1:])
    else:
        kwargs[name] = noisy
    prediction = prediction_of(call.beneath(*args, **kwargs))
    # DiT and PixArt put out the variance behind the prediction
    return (prediction[:, : target.shape[1]] if target.ndim == 4 else prediction).sub(target).square().mean()
