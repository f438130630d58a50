"""Fair timing of policies: turns, so that all of them see the same machine."""

import time
from collections.abc import Mapping

import numpy as np
import torch
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
    found: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(warmup + repeats):
        for name, policy in policies.items():
            generator = torch.Generator().manual_seed(turn)
            begin = time.perf_counter()
            prediction, _ = policy.plan(conditions[name], None, generator, batch)
            prediction.cpu()  # waits for the device
            if turn >= warmup:
                found[name].append(time.perf_counter() - begin)
    return found


def compare(policies: Mapping[str, EDMPolicy], batch: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of a replan of each policy."""
    return {name: float(np.median(times)) for name, times in replan_times(policies, batch, repeats).items()}
