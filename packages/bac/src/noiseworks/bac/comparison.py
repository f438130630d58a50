"""Arms side by side on one host: the full run, its baselines and the plans, timed in turn in one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import FeatureProfile
from noiseworks.bac.sampling import FusedDiffusionPolicy
from noiseworks.bac.teacache import attach_teacache
from noiseworks.core.checks import check_choice, check_number
from noiseworks.kits.policies.protocols import DenoiserHost, Obs
from noiseworks.kits.policies.replanning import DiffusionPolicy, ReplanningPolicy

PLANS = ("uniform", "unified", "adjacent", "block", "bac")
ARMS = ("full", "lean", "ddim", "truncated", "teacache", *PLANS)


@dataclass(frozen=True)
class Arms:
    """What every arm needs.

    Attributes:
        host: The policy.
        plans: Plans by arm.
        updates: M.
        steps: K.
        threshold: Of the TeaCache-like baseline.
    """

    host: DenoiserHost
    plans: dict[str, CachePlan]
    updates: int
    steps: int
    threshold: float

    @contextmanager
    def policy(self, arm: str, num_envs: int = 1) -> Iterator[ReplanningPolicy]:
        """Attach what an arm needs and give its policy; detach at the end.

        Raises:
            InputError: When the arm is unknown.
        """
        check_choice("arm", arm, ARMS)
        attached: Any = nullcontext()
        if arm in PLANS:
            attached = attach(self.host, self.plans[arm])
        elif arm == "lean":
            # Everything is computed, by the same lean code that the plans run on.
            every = CachePlan.uniform(self.plans["bac"].blocks, self.steps, 1)
            attached = attach(self.host, every, exact=False)
        elif arm == "teacache":
            attached = attach_teacache(self.host, self.threshold, self.steps)
        with attached:
            yield self._sampler(arm, num_envs)

    def _sampler(self, arm: str, num_envs: int) -> ReplanningPolicy:
        if arm == "full":
            return DiffusionPolicy(self.host, num_inference_steps=self.steps, num_envs=num_envs)
        if arm == "ddim":
            return DiffusionPolicy(
                self.host, solver="ddim", num_inference_steps=self.updates, num_envs=num_envs
            )
        last = self.updates if arm == "truncated" else None
        return FusedDiffusionPolicy(
            self.host, num_inference_steps=self.steps, last_steps=last, num_envs=num_envs
        )


def make_plans(profile: FeatureProfile, updates: int, bubble: int) -> dict[str, CachePlan]:
    """Return the plans that are compared at M updates a block.

    Args:
        profile: The policy's profile.
        updates: M.
        bubble: Blocks that bubble up in the arm `bac`.
    """
    check_number("updates", updates, low=1, high=profile.num_steps, integer=True)
    every = -(-profile.num_steps // updates)
    return {
        "uniform": CachePlan.uniform(profile.blocks, profile.num_steps, every),
        "unified": CachePlan.unified(profile, updates),
        "adjacent": make_plan(profile, updates=updates, objective="adjacent", bubble=0),
        "block": make_plan(profile, updates=updates, bubble=0),
        "bac": make_plan(profile, updates=updates, bubble=bubble),
    }


def time_replans(
    arms: Arms,
    names: Sequence[str],
    observation: Obs,
    repeats: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of replans, arms in turn so that a busy machine slows all of them alike.

    Args:
        arms: The arms.
        names: Which of them.
        observation: Tensors [B, To, ...].
        repeats: Timed replans of each arm, after one that is not counted.
        progress: Called with the number of finished rounds.
    """
    check_number("repeats", repeats, low=1, integer=True)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            with arms.policy(name) as policy:
                chunk = policy.predict_chunk(observation, torch.Generator().manual_seed(turn))
            if turn:
                seconds[name].append(chunk.latency_s)
        if progress is not None:
            progress(turn)
    return seconds


def action_errors(arms: Arms, names: Sequence[str], observations: Obs, seed: int) -> dict[str, np.ndarray]:
    """Return each observation's mean squared difference to the full run's prediction with the same noise.

    Args:
        arms: The arms.
        names: Which of them.
        observations: Tensors [n, To, ...].
        seed: Of the noise.
    """
    rows = len(next(iter(observations.values())))

    def predicted(name: str) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed + row) for row in range(rows)]
        with arms.policy(name) as policy:
            return policy.predict_chunk(observations, generators).prediction

    full = predicted("full")
    found = {name: full if name == "full" else predicted(name) for name in names}
    return {name: (value - full).square().mean((1, 2)).double().numpy() for name, value in found.items()}


def compare(
    arms: Arms,
    observations: Obs,
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Return each arm's milliseconds, speed-up over the full policy, share of computed blocks and action error.

    Args:
        arms: The arms.
        observations: Tensors [n, To, ...], all of them for the actions' error.
        batch_size: How many of them a timed replan has.
        repeats: Timed replans of each arm.
        seed: Of the noise.
        progress: Called with the number of finished rounds.
    """
    part = {name: value[:batch_size] for name, value in observations.items()}
    seconds = time_replans(arms, ARMS, part, repeats, progress)
    wrong = action_errors(arms, ARMS, observations, seed)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        name: {
            "milliseconds": 1e3 * medians[name],
            "times_faster": medians["full"] / medians[name],
            "share": arms.plans[name].share if name in arms.plans else None,
            "action_error": float(wrong[name].mean()),
        }
        for name in ARMS
    }
