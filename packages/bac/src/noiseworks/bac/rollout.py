"""Episodes on the testbed `tabletop` with a plan attached, kept so that they can be shown."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.data import testbed
from noiseworks.bac.options import Episodes
from noiseworks.bac.plan import CachePlan
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import DiffusionPolicy

STATE = 21


@dataclass(frozen=True)
class Rollout:
    """Episodes and what they took.

    Attributes:
        report: Success, steps and observations of every episode.
        seconds: Time in all.
    """

    report: EvaluationReport
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return success, its interval, calls and seconds, and success by task."""
        by_task = {str(task): row["success"] for task, row in self.report.by_task().items()}
        return self.report.summary() | {"seconds": self.seconds, "by_task": by_task}

    def film(self, rows: np.ndarray) -> tuple[list[np.ndarray], list[str], list[int | None]]:
        """Return states a step, captions and the step of success of some episodes, for `write_episodes`."""
        states = self.report.observations[rows, :, :STATE]
        lengths = np.isfinite(states[:, :, 0]).sum(1)
        steps = [states[np.arange(len(rows)), np.minimum(k, lengths - 1)] for k in range(int(lengths.max()))]
        captions = [testbed().instruction(int(task)) for task in self.report.tasks[rows]]
        solved = [
            int(length) - 1 if won else None
            for length, won in zip(lengths, self.report.success[rows], strict=True)
        ]
        return steps, captions, solved


def roll_out(host: DenoiserHost, plan: CachePlan | None, episodes: Episodes) -> Rollout:
    """Run episodes of some tasks, all of them at once.

    Args:
        host: The policy.
        plan: What is attached to it; None for nothing.
        episodes: Which episodes.
    """
    listed, seeds = episode_list(episodes.tasks, episodes.episodes, episodes.first_seed)
    env = testbed().TabletopBatch(len(listed), disturb=episodes.disturb)
    steps = None if plan is None else plan.num_steps
    policy = DiffusionPolicy(host, num_inference_steps=steps, num_envs=env.num_envs)
    begin = time.perf_counter()
    with nullcontext() if plan is None else attach(host, plan), torch.inference_mode():
        report = evaluate(policy, env, listed, seeds, record=True)
    return Rollout(report, time.perf_counter() - begin)
