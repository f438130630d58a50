"""The paper's ablations (tables 2 and 7, figure 8) as settings, trained and compared by one command."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.params import edm_preconditioning
from noiseworks.kits.policies.options import TABLETOP, Trials
from noiseworks.mode.commands import train
from noiseworks.mode.config import Architecture, Demonstrations, Running
from noiseworks.mode.edm import sampling_sigmas
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.rollout import roll_out
from noiseworks.mode.routing import usage_information
from noiseworks.mode.task_data import TaskData, load_task_data
from torch import Tensor

WINDOWS = 256  # on which the loss by noise level is measured


class Variant(NamedTuple):
    """What an ablation changes.

    Attributes:
        architecture: Settings of `Architecture`.
        recipe: Settings of `Recipe`.
        scaled: Settings of `Architecture` that become multiples of what they are.
    """

    architecture: Mapping[str, Any] = MappingProxyType({})
    recipe: Mapping[str, Any] = MappingProxyType({})
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
    "gamma-0.1": Variant(recipe={"gamma": 0.1}),
    "gamma-0.001": Variant(recipe={"gamma": 0.001}),
    "no-balancing": Variant(recipe={"gamma": 0.0}),
    "half-width": Variant(scaled={"width": 0.5}),
    "quarter-width": Variant(scaled={"width": 0.25}),
    "token-routing": Variant({"routing": "token"}),
    "goal-routing": Variant({"routing": "goal"}),
    "experts-2": Variant({"num_experts": 2}),
    "experts-6": Variant({"num_experts": 6}),
    "experts-8": Variant({"num_experts": 8}),
    "dense": Variant({"num_experts": 1, "top_k": 1}, scaled={"expert_factor": 2}),
}


def compare_variants(
    source: Demonstrations,
    out: Path,
    variants: str | None,
    given: Mapping[str, Any],
    episodes: int = 10,
) -> dict[str, dict[str, Any]]:
    """Train variants and measure them, see the command `ablate`.

    Args:
        source: Demonstrations.
        out: Folder that gets a folder for each variant.
        variants: Names of `VARIANTS`, commas between; None for all.
        given: The option groups of `train` by parameter.
        episodes: Episodes of each task of the testbed.

    Raises:
        InputError: When a name or a number is out of range, or a folder holds a run of other settings.
    """
    names = list(VARIANTS) if variants is None else [name.strip() for name in variants.split(",")]
    for name in names:
        check_choice("variants", name, list(VARIANTS))
    shapes = {name: varied(VARIANTS[name], given["architecture"]) for name in names}  # before one trains
    rows = {}
    for name in names:
        changed = {"architecture": shapes[name], "recipe": replace(given["recipe"], **VARIANTS[name].recipe)}
        report = train(source=source, out=out / name, **{**given, **changed})
        found = load_task_data(source, image_size=given["seeing"].size)
        model = MoDEModel.from_pretrained(report.model)
        rows[name] = _measured(model, found)
        rows[name]["success"] = _success(model, episodes) if source.data == TABLETOP else None
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


def _success(model: MoDEModel, episodes: int) -> float:
    kind = "cached" if _routed_by_noise(model) else "routed"
    return roll_out(model, Running(experts=kind), Trials(tasks=tuple(range(12)), episodes=episodes))[
        "success"
    ]


def _routed_by_noise(model: MoDEModel) -> bool:
    return not model.config.dense and model.config.routing == "noise"


def _measured(model: MoDEModel, data: TaskData) -> dict[str, Any]:
    routed, table = _routed_by_noise(model), data.table(model.config.chunk)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(table["action"]))[:WINDOWS])
    batch = {name: column[rows] for name, column in table.items()}
    usage = EDMPolicy(model).expert_usage() if routed else None
    return {
        "loss_by_level": loss_by_level(model, batch, sampling_sigmas()[:-1].tolist()),
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
