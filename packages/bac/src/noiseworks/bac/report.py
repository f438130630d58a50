"""How far a plan's block outputs are from those of the full run: the error of reuse, and the surge at updates.

A feed-forward block that is computed from stale inputs carries the error of what lies before it (section 3.3):
so errors of reused and of freshly computed outputs are told apart.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.plan import CachePlan
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.protocols import Obs
from noiseworks.kits.policies.replanning import DiffusionPolicy
from torch import Tensor


@dataclass(frozen=True)
class ErrorReport:
    """Errors of a plan against the full run with the same noise.

    Attributes:
        blocks: Names of the blocks.
        errors: |b - b_full| / |b_full| of what each block contributes at each step, float64 [num_blocks, K].
        computed: Where the block was computed, bool [num_blocks, K].
        action_error: Mean squared difference of the predictions, in normalised units.
    """

    blocks: tuple[str, ...]
    errors: np.ndarray
    computed: np.ndarray
    action_error: float

    @property
    def reuse_error(self) -> np.ndarray:
        """Mean error of each block's reused outputs, float64 [num_blocks]; 0 where none is reused."""
        return _mean_where(self.errors, ~self.computed)

    @property
    def update_error(self) -> np.ndarray:
        """Mean error of each block's computed outputs after step 0, float64 [num_blocks]."""
        later = self.computed.copy()
        later[:, 0] = False
        return _mean_where(self.errors, later)

    def to_dict(self) -> dict[str, Any]:
        """Return the table of both errors by block, and the error of the actions."""
        pairs = zip(self.reuse_error.tolist(), self.update_error.tolist(), strict=True)
        table = {
            name: {"reuse": reuse, "update": update}
            for name, (reuse, update) in zip(self.blocks, pairs, strict=True)
        }
        return {"action_error": self.action_error, "blocks": table}


def error_report(
    policy: Any, plan: CachePlan, observations: Obs, *, seed: int = 0, num_steps: int | None = None
) -> ErrorReport:
    """Compare a plan with the full run, block by block and step by step.

    Args:
        policy: A host; nothing may be attached to it.
        plan: The plan.
        observations: The host's observations, tensors [n, To, ...].
        seed: Of the noise, the same for both runs.
        num_steps: Network calls of a replan; by default all steps of the training.

    Raises:
        InputError: When the policy is a bare network, or the plan has another number of steps.
    """
    stack = find_stack(policy)
    if stack.host is None:
        raise InputError(
            "errors are measured on a policy with its observations; pass the host, not its network"
        )
    sampler = DiffusionPolicy(stack.host, num_inference_steps=num_steps)
    if len(sampler.table) != plan.num_steps:
        raise InputError(
            f"the plan has {plan.num_steps} steps, the sampler {len(sampler.table)}; make a plan for it"
        )
    outputs: list[list[Tensor]] = [[] for _ in plan.blocks]
    errors = np.zeros(plan.table.shape)

    def keep(_: int, block: int, output: Tensor) -> None:
        outputs[block].append(output)

    def compare(step: int, block: int, output: Tensor) -> None:
        # What is computed now is contributed until the block is computed again.
        after = np.flatnonzero(plan.table[block, step + 1 :])
        end = step + 1 + int(after[0]) if len(after) else plan.num_steps
        for k in range(step, end):
            expected = outputs[block][k]
            errors[block, k] = float((output - expected).norm() / expected.norm().clamp_min(1e-12))

    def planned(used: CachePlan, observer: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        with attach(policy, used, fused=False, observer=observer):
            return sampler.predict_chunk(observations, generator).prediction

    full = planned(CachePlan.uniform(plan.blocks, plan.num_steps, 1), keep)
    cached = planned(plan, compare)
    return ErrorReport(plan.blocks, errors, plan.table, float((full - cached).square().mean()))


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return (values * where).sum(1) / np.maximum(1, where.sum(1))
