"""The paper's ablations (tables 2 and 7, figure 8) as settings, trained and compared by one command."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.cli import SPREAD
from noiseworks.core.params import edm_preconditioning
from noiseworks.mode.edm import sampling_sigmas
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.routing import usage_information
from noiseworks.mode.task_data import TABLETOP, load_task_data
from noiseworks.mode.train_command import Architecture, Optimization, train
from torch import Tensor

SHIPPED_SHAPE, SHIPPED_TRAINING = Architecture(), Optimization()
WINDOWS = 256  # on which the loss by noise level is measured


class Variant(NamedTuple):
    """What an ablation changes.

    Attributes:
        architecture: Settings of `Architecture`.
        optimization: Settings of `Optimization`.
        scaled: Settings of `Architecture` that become multiples of what they are.
    """

    architecture: Mapping[str, Any] = MappingProxyType({})
    optimization: Mapping[str, Any] = MappingProxyType({})
    scaled: Mapping[str, float] = MappingProxyType({})


VARIANTS: dict[str, Variant] = {
    "full": Variant(),
    "no-noise-token": Variant({"noise_token": False}),
    "no-noise-attention": Variant({"noise_conditioning": "none"}),
    "film": Variant({"noise_conditioning": "film"}),
    "top-1": Variant({"top_k": 1}),
    "shared-expert": Variant({"shared_expert": True}),
    "argmax-routing": Variant({"argmax_routing": True}),
    "identity-expert": Variant({"identity_expert": True}),
    "prenorm": Variant({"residual": "prenorm"}),
    "gamma-0.1": Variant(optimization={"gamma": 0.1}),
    "gamma-0.001": Variant(optimization={"gamma": 0.001}),
    "no-balancing": Variant(optimization={"gamma": 0.0}),
    "half-width": Variant(scaled={"width": 0.5}),
    "quarter-width": Variant(scaled={"width": 0.25}),
    "token-routing": Variant({"routing": "token"}),
    "goal-routing": Variant({"routing": "goal"}),
    "experts-2": Variant({"experts": 2}),
    "experts-6": Variant({"experts": 6}),
    "experts-8": Variant({"experts": 8}),
    "dense": Variant({"experts": 1, "top_k": 1}, scaled={"expert_factor": 2}),
}


def ablate(
    data: str,
    out: Path,
    *,
    variants: list[str] | None = None,
    architecture: Annotated[Architecture, SPREAD] = SHIPPED_SHAPE,
    optimization: Annotated[Optimization, SPREAD] = SHIPPED_TRAINING,
    demonstrations: int | None = None,
    episodes: int = 10,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train variants of a model that differ in one setting each, and compare them.

    A call that was stopped goes on where it was: each variant has a folder of its own.

    Args:
        data: `tabletop`, or a folder as for `train`.
        out: Folder that gets a folder for each variant.
        variants: Names of `VARIANTS`; by default all.
        architecture: What the variants change.
        optimization: How all of them train.
        demonstrations: Demonstrations per task of the testbed.
        episodes: Episodes of each task of the testbed; a folder has no environment, so none are run.
        seed: First seed of the episodes; below 1000 to tune.

    Returns:
        For each variant success, loss by noise level, bits of information between level and expert, parameters and
        operations.

    Raises:
        InputError: When a name or a number is out of range, or a folder holds a run of other settings.
    """
    names = list(VARIANTS) if variants is None else variants
    for name in names:
        check_choice("variants", name, list(VARIANTS))
    check_number("episodes", episodes, low=1, integer=True)
    check_number("seed", seed, low=0, integer=True)
    shapes = {name: varied(VARIANTS[name], architecture) for name in names}  # all are sound before one trains
    rows = {}
    for name in names:
        settings = replace(optimization, **VARIANTS[name].optimization)
        report = train(
            data,
            out / name,
            architecture=shapes[name],
            optimization=settings,
            episodes=demonstrations,
            resume=True,
        )
        rows[name] = _measured(report.model, data, shapes[name], demonstrations, episodes, seed)
    return rows


def varied(variant: Variant, architecture: Architecture) -> Architecture:
    """Return an architecture with a variant's settings.

    Raises:
        InputError: When a scaled setting falls below 1.
    """
    scaled = {}
    for name, factor in variant.scaled.items():
        scaled[name] = int(getattr(architecture, name) * factor)
        check_number(f"{name} of a variant", scaled[name], low=1, integer=True)
    return replace(architecture, **variant.architecture, **scaled)


def _measured(
    folder: Path, data: str, shape: Architecture, demonstrations: int | None, episodes: int, seed: int
) -> dict[str, Any]:
    from noiseworks.mode.commands import eval_policy

    model = MoDEModel.from_pretrained(folder)
    routed = not model.config.dense and model.config.routing == "noise"
    success = None
    if data == TABLETOP:
        experts = "cached" if routed else "routed"
        success = eval_policy(str(folder), episodes=episodes, seed=seed, experts=experts)["success"]
    size = None if shape.encoder == "state" else shape.image_size
    table = load_task_data(data, episodes=demonstrations, image_size=size).table(shape.chunk)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(table["action"]))[:WINDOWS])
    batch = {name: column[rows] for name, column in table.items()}
    usage = EDMPolicy(model).expert_usage() if routed else None
    return {
        "success": success,
        "loss_by_level": loss_by_level(model, batch, sampling_sigmas()[:-1].tolist(), seed),
        "bits": None if usage is None else float(usage_information(usage).mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "megaflops": denoiser_flops(model.config, obs_tokens=_tokens(model), cached=routed) / 1e6,
    }


def _tokens(model: MoDEModel) -> int:
    return len(getattr(model.encoder, "cameras", ("state",)))


@torch.inference_mode()
def loss_by_level(
    model: MoDEModel, batch: dict[str, Tensor], sigmas: Sequence[float], seed: int = 0
) -> list[float]:
    """Return the EDM-weighted denoising loss at each noise level, with the same noise for every model.

    Args:
        model: The model, in evaluation mode.
        batch: Windows of `TaskData.table`.
        sigmas: Levels above 0.
        seed: Of the noise.
    """
    clean, cond = model.normalizer.normalize(batch["action"]), model.encode(batch)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    losses = []
    for sigma in sigmas:
        levels = torch.full((len(clean),), sigma, dtype=torch.float64)
        c_out = edm_preconditioning(levels[:1], model.config.sigma_data).c_out
        error = (model.denoise(clean + sigma * noise, levels, cond) - clean) / float(c_out)
        losses.append(float(error.square().mean()))
    return losses
