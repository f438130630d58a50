"""Fair timing of policies: turns, so that all of them see the same machine."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from noiseworks.core.timing import in_turns
from noiseworks.mode.config import Timing
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition
from noiseworks.mode.policy import EDMPolicy
from torch import Tensor


def random_condition(model: MoDEModel, batch: int, generator: torch.Generator) -> Condition:
    """Return a condition of normal draws that fits a model, on its device."""
    config, device = model.config, model.denoiser.pos_emb.device

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    proprio = None if config.proprio_dim is None else draw(batch, config.proprio_dim)
    return Condition(draw(batch, config.goal_dim), draw(batch, 1, config.obs_dim), proprio)


@torch.inference_mode()
def replan_times(
    policies: Mapping[str, EDMPolicy], batch: int, repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of replans (from the condition to the actions), kinds taking turns.

    Args:
        policies: Policies by name; state-conditioned ones.
        batch: Rows of a replan.
        repeats: Replans of each.
        warmup: Further ones before, not counted.
    """
    conditions = {
        name: random_condition(policy.model, batch, torch.Generator().manual_seed(0))
        for name, policy in policies.items()
    }

    def replan(name: str, turn: int) -> None:
        generator = torch.Generator().manual_seed(turn)
        policies[name].plan(conditions[name], None, generator, batch)

    device = next(iter(policies.values())).model.denoiser.pos_emb.device
    arms = {name: partial(replan, name) for name in policies}
    times = in_turns(arms, repeats, warmup=warmup, device=device)
    return {name: list(times[name].seconds) for name in policies}


def medians(policies: Mapping[str, EDMPolicy], batch: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of a replan of each policy."""
    return {name: float(np.median(times)) for name, times in replan_times(policies, batch, repeats).items()}


def compare_kinds(model: MoDEModel, dense: MoDEModel | None, timing: Timing) -> dict[str, Any]:
    """Return seconds of a replan and their ratio to routing, by kind, and the operations of a denoiser call.

    Args:
        model: The sparse model: routed, with merged and with batched experts.
        dense: A dense one beside it.
        timing: Rows, repeats and whether compiled networks are timed too.
    """
    kinds = {"routed": EDMPolicy(model)}
    for form in ("merged", "bmm"):
        kinds[form] = EDMPolicy(model)
        kinds[form].cache_experts(form=form)
    flops = {"flops": denoiser_flops(model.config, batch=timing.batch, cached=True)}
    if dense is not None:
        kinds["dense"] = EDMPolicy(dense)
        flops["dense_flops"] = denoiser_flops(dense.config, batch=timing.batch)
    if timing.backend is not None:
        for name in [name for name in ("merged", "dense") if name in kinds]:
            twin = kinds[f"{name}_compiled"] = EDMPolicy(kinds[name].model)
            twin.cache = kinds[name].cache
            twin.compile(timing.backend)
    seconds = medians(kinds, timing.batch, timing.repeats)
    return {name: {"seconds": s, "ratio": s / seconds["routed"]} for name, s in seconds.items()} | flops
