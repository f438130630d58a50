"""How close a pruned denoiser is to the whole one, and what it costs: latents, pictures, parameters, seconds."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.timing import in_turns, work_clock
from noiseworks.ecodiff.objective import Runs
from noiseworks.kits.diffusers_hosts.forecasts import decode_latents
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of, layout_of
from noiseworks.kits.diffusers_hosts.units import remove_units
from noiseworks.kits.images import structural_similarity
from noiseworks.kits.pictures import grid, to_pixels, write_picture
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHOWN = 8  # images of a row


@contextmanager
def swapped(pipe: "DiffusionPipeline", denoiser: nn.Module) -> Iterator[None]:
    """Let a pipeline run with another denoiser inside the block."""
    name, own = layout_of(pipe).component, denoiser_of(pipe)
    setattr(pipe, name, denoiser)
    try:
        yield
    finally:
        setattr(pipe, name, own)


def pruned_copy(pipe: "DiffusionPipeline", kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a smaller copy of a pipeline's denoiser; the pipeline stays as it is."""
    with swapped(pipe, copy.deepcopy(denoiser_of(pipe))):
        remove_units(pipe, kept)
        return denoiser_of(pipe)


def count_parameters(model: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(p.numel() for p in model.parameters())


def batches_of(runs: Runs) -> list[range]:
    """Return the numbers of the prompts of each batch."""
    size, count = runs.sampling.batch_size, len(runs.prompts)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def draw_all(
    runs: Runs, denoisers: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Return final latents `[n, ...]` and seconds an image of each batch, by denoiser.

    All draw the same prompts from the same noise, batch by batch in turn and every second batch backwards, so that a
    change of the machine's speed meets them alike. On a CPU the seconds are the process's own, without other programs'.

    Args:
        runs: The pipeline and the prompts.
        denoisers: Name -> denoiser.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in denoisers}
    seconds: dict[str, list[float]] = {name: [] for name in denoisers}

    def drawing(denoiser: nn.Module, rows: range) -> Any:
        def draw(turn: int) -> Tensor:
            with swapped(runs.pipe, denoiser):
                return runs.latents(rows).float().cpu()

        return draw

    for number, rows in enumerate(batches_of(runs)):
        order = reversed(denoisers.items()) if number % 2 else denoisers.items()
        times = in_turns(
            {name: drawing(denoiser, rows) for name, denoiser in order},
            1,
            warmup=int(number == 0),
            device=runs.pipe.device,
            clock=work_clock(runs.pipe.device),
            keep=True,
        )
        for name, one in times.items():
            found[name].append(one.results[0])
            seconds[name].append(one.seconds[0] / len(rows))
    return {name: torch.cat(parts) for name, parts in found.items()}, seconds


@torch.no_grad()
def decoded(pipe: "DiffusionPipeline", latents: Tensor) -> Tensor:
    """Return images `[n, 3, H, W]` in [0, 1]."""
    parts = latents.to(pipe.device).split(16)
    return torch.cat([decode_latents(pipe, part).float().cpu() for part in parts])


def latent_errors(latents: Tensor, dense: Tensor) -> Tensor:
    """Return the mean square difference of each sample's latents, `[n]`."""
    return (latents - dense).square().flatten(1).mean(dim=1)


def report(
    runs: Runs, denoisers: Mapping[str, nn.Module], picture: Path | None = None
) -> list[dict[str, Any]]:
    """Return a row a denoiser: parameters, latent error and SSIM to the first one, seconds an image.

    Args:
        runs: The pipeline and the prompts.
        denoisers: Name -> denoiser, the whole one first.
        picture: Where a row of images a denoiser is written.
    """
    latents, seconds = draw_all(runs, denoisers)
    images = {name: decoded(runs.pipe, found) for name, found in latents.items()}
    first = next(iter(denoisers))
    if picture is not None:
        rows = {name: to_pixels(found[:SHOWN]) for name, found in images.items()}
        write_picture(grid(rows, scale=2 if images[first].shape[-1] < 128 else 1), picture)
    whole = count_parameters(denoisers[first])
    rows = []
    for name, denoiser in denoisers.items():
        similarity = structural_similarity(images[first], images[name], darkest=0.0)
        rows.append(
            {
                "model": name,
                "parameters": (size := count_parameters(denoiser)),
                "of all": size / whole,
                "latent_error": float(latent_errors(latents[name], latents[first]).mean()),
                "ssim": float(similarity.mean()),
                "seconds": sum(seconds[name]) / len(seconds[name]),
            }
        )
    return rows
