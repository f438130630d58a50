"""Episodes on the testbed `tabletop` with a plan attached, kept so that they can be shown."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.data import testbed
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.sampling import FusedDiffusionPolicy
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.protocols import DenoiserHost

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


def roll_out(
    host: DenoiserHost, plan: CachePlan | None, tasks: list[int], episodes: int, seed: int
) -> Rollout:
    """Run episodes of some tasks, all of them at once.

    Args:
        host: The policy.
        plan: What is attached to it; None for nothing.
        tasks: Task numbers.
        episodes: Episodes of each task.
        seed: Of the first episode.
    """
    listed, seeds = episode_list(tasks, episodes, seed)
    env = testbed().TabletopBatch(len(listed))
    steps = None if plan is None else plan.num_steps
    policy = FusedDiffusionPolicy(host, num_inference_steps=steps, num_envs=env.num_envs)
    begin = time.perf_counter()
    if plan is None:
        report = evaluate(policy, env, listed, seeds, record=True)
    else:
        with attach(host, plan), torch.inference_mode():
            report = evaluate(policy, env, listed, seeds, record=True)
    return Rollout(report, time.perf_counter() - begin)
