"""Arms side by side on one host: the full run, its baselines and the plans, timed in turn in one process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.data import load_observations
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.offline import bar
from noiseworks.bac.options import Checking, Schedule, Timing
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import FeatureProfile
from noiseworks.bac.teacache import attach_teacache, teacache_threshold
from noiseworks.core.checks import check_choice
from noiseworks.core.memory import peak_mib
from noiseworks.core.timing import in_turns
from noiseworks.kits.policies.protocols import DenoiserHost, Obs
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.steps import sampler_table


@dataclass(frozen=True)
class Arms:
    """What every arm needs.

    Attributes:
        host: The policy.
        plans: Plans by arm.
        steps: K.
        ddim: Steps of the arms whose name begins with ddim.
        truncated: Steps of the truncated run, where there is that arm.
        threshold: Of the TeaCache-like baseline, where there is that arm.
    """

    host: DenoiserHost
    plans: dict[str, CachePlan]
    steps: int
    ddim: dict[str, int]
    truncated: int | None = None
    threshold: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All arms, the full run first."""
        naive = () if self.truncated is None else ("truncated",)
        rule = () if self.threshold is None else ("teacache",)
        return ("full", "lean", *self.ddim, *naive, *rule, *self.plans)

    @contextmanager
    def policy(self, arm: str, num_envs: int = 1) -> Iterator[DiffusionPolicy]:
        """Attach what an arm needs and give its policy; detach at the end.

        Raises:
            InputError: When the arm is unknown.
        """
        check_choice("arm", arm, self.names)
        attached: Any = nullcontext()
        if arm in self.plans:
            attached = attach(self.host, self.plans[arm])
        elif arm == "lean":
            # Everything is computed, by the same lean code that the plans run on.
            every = CachePlan.uniform(find_stack(self.host).blocks, self.steps, 1)
            attached = attach(self.host, every, exact=False)
        elif arm == "teacache":
            attached = attach_teacache(self.host, self.threshold, self.steps)
        with attached:
            yield self._sampler(arm, num_envs)

    def _sampler(self, arm: str, num_envs: int) -> DiffusionPolicy:
        if arm.startswith("ddim"):
            steps = self.ddim[arm]
            return DiffusionPolicy(self.host, solver="ddim", num_inference_steps=steps, num_envs=num_envs)
        table = sampler_table(self.host.scheduler, "ddpm", self.steps)
        table = table.last(self.truncated) if arm == "truncated" else table
        return DiffusionPolicy(self.host, table=table, num_envs=num_envs)


def make_plans(profile: FeatureProfile, schedule: Schedule) -> dict[str, CachePlan]:
    """Return the plans that are compared at M updates a block.

    Args:
        profile: The policy's profile.
        schedule: M, and how many blocks bubble up in the arm `bac`.
    """
    plain = replace(schedule, bubble=0)
    return {
        "uniform": CachePlan.of_updates(profile, schedule.updates),
        "unified": CachePlan.unified(profile, plain),
        "adjacent": make_plan(profile, replace(plain, objective="adjacent")),
        "block": make_plan(profile, plain),
        "bac": make_plan(profile, schedule),
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

    def replan(name: str, turn: int) -> float:
        with arms.policy(name) as policy:
            return policy.predict_chunk(observation, torch.Generator().manual_seed(turn)).latency_s

    # The replan alone counts, which a policy times itself, not that a plan is attached.
    each = {name: partial(replan, name) for name in names}
    times = in_turns(each, repeats, keep=True, progress=progress)
    return {name: list(times[name].results) for name in names}


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


def compare_policies(
    host: DenoiserHost, profile: FeatureProfile, schedule: Schedule, checking: Checking, timing: Timing
) -> dict[str, dict[str, float | None]]:
    """Return each arm's milliseconds, speed-up over the full policy, calls, memory, share of blocks and action error.

    Args:
        host: The policy.
        profile: Its profile.
        schedule: Of the plans.
        checking: Observations, and the noise's seed.
        timing: Rows and repeats of timed replans.
    """
    obs = load_observations(checking.data, host, checking.observations, checking.seed)
    plans = make_plans(profile, schedule)
    updates, steps, generator = (
        schedule.updates,
        profile.num_steps,
        torch.Generator().manual_seed(checking.seed),
    )
    threshold = teacache_threshold(host, obs, updates, num_steps=steps, generator=generator)
    arms = Arms(host, plans, steps, {"ddim": updates}, updates, threshold)
    part = {name: value[: timing.batch_size] for name, value in obs.items()}
    peaks, calls = {}, {}
    for name in arms.names:
        with arms.policy(name) as policy:
            replan = partial(policy.predict_chunk, part, torch.Generator().manual_seed(0))
            chunk, peaks[name] = peak_mib(replan, policy.loop.device)
        calls[name] = chunk.nfe
    with bar() as bars:
        task = bars.add_task("timing", total=timing.repeats)
        seconds = time_replans(arms, arms.names, part, timing.repeats, lambda _: bars.advance(task))
    wrong = action_errors(arms, arms.names, obs, checking.seed)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        name: {
            "milliseconds": 1e3 * medians[name],
            "times_faster": medians["full"] / medians[name],
            "calls": calls[name],
            "peak_mib": peaks[name],
            "share": arms.plans[name].share if name in arms.plans else None,
            "error": float(wrong[name].mean()),
        }
        for name in arms.names
    }
