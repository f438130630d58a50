"""What the commands of all methods on policies do: run one in episodes, and compare several on the same ones."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.memory import peak_mib
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.data import film, make_env
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate, measure_latency
from noiseworks.kits.policies.hosts.lerobot_dataset import check_dataset, rollouts
from noiseworks.kits.policies.loop import network_place
from noiseworks.kits.policies.options import TABLETOP, Trials
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.kits.policies.video import check_video, write_video

BATCH = 200


@dataclass(frozen=True)
class Outcome[P: ReplanningPolicy]:
    """Episodes, and the policy that ran them.

    Attributes:
        report: Success, steps, calls and seconds; observations and actions where they were recorded.
        policy: The policy, with what it counted.
    """

    report: EvaluationReport
    policy: P

    def summary(self) -> dict[str, Any]:
        """Return the figures for JSON: success with its interval, calls, seconds, and success by task."""
        by_task = {str(task): row["success"] for task, row in self.report.by_task().items()}
        return self.report.summary() | {"success_by_task": by_task}


def run[P: ReplanningPolicy](
    make: Callable[[int], P],
    trials: Trials,
    *,
    needs: str,
    video: Path | None = None,
    record: Path | None = None,
    dataset: Path | None = None,
    image_size: int | None = None,
    depth: bool = False,
) -> Outcome[P]:
    """Run a policy in episodes.

    Args:
        make: Makes the policy for a number of environments.
        trials: The episodes.
        needs: The method, whose extra brings the environments.
        video: Animated WebP file of the first episode of each task of the table.
        record: npz file of the episodes, which `Episodes.load` reads.
        dataset: Folder of the episodes in LeRobot's format, to be made.
        image_size: Side of the pictures that the table shows beside its state; None for none.
        depth: Whether it shows depth maps as well.

    Raises:
        InputError: When the environment is not installed or does not fit the policy, or the dataset cannot be made.
    """
    if video is not None:
        check_choice("env of a video", trials.env, (TABLETOP,))
    kept = video is not None or record is not None
    outcome = recorded(
        make, trials, needs=needs, record=kept, dataset=dataset, image_size=image_size, depth=depth
    )
    if video is not None:
        write_video(film(outcome.report.observations[:: trials.episodes], needs=needs), video)
    if record is not None:
        save_episodes(outcome.report, record)
    return outcome


def recorded[P: ReplanningPolicy](
    make: Callable[[int], P],
    trials: Trials,
    *,
    needs: str,
    record: bool,
    dataset: Path | None = None,
    image_size: int | None = None,
    depth: bool = False,
) -> Outcome[P]:
    """Run a policy in episodes as `run` does, and keep what it saw and did in its report where `record` says so."""
    if dataset is not None:
        check_dataset(dataset)
    tasks, seeds = episode_list(trials.task_ids, trials.episodes, trials.seed)
    env = make_env(
        trials.env,
        min(BATCH, len(tasks)),
        needs=needs,
        disturb=trials.disturb,
        latency=trials.latency,
        image_size=image_size,
        depth=depth,
    )
    policy = make(env.num_envs)
    with nullcontext() if dataset is None else rollouts(dataset, env, tasks) as kept:
        watch = None if kept is None else kept.add
        return Outcome(evaluate(policy, env, tasks, seeds, record=record, watch=watch), policy)


def compare(
    arms: Mapping[str, Callable[[int], ReplanningPolicy]],
    trials: Trials,
    *,
    needs: str,
    replans: int = 20,
    video: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the figures of several policies on the same episodes; the first is what the others are compared with.

    Args:
        arms: Name -> makes the policy for a number of environments.
        trials: The episodes.
        needs: The method, whose extra brings the environments.
        replans: Replans that are timed, one environment at a time.
        video: Animated WebP file of the first episode on the table, the policies side by side.

    Returns:
        For each policy: success with its interval, network calls a replan and an executed action, milliseconds a
        replan, peak memory of its tensors in MiB beside the weights, and how many times faster than the first one's a
        replan is.
    """
    check_number("replans", replans, low=1, integer=True)
    if video is not None:
        check_video(video)
    one = make_env(trials.env, 1, needs=needs)
    found: dict[str, dict[str, Any]] = {}
    episodes = []
    for name, make in arms.items():
        outcome = recorded(make, trials, needs=needs, record=video is not None)
        report = outcome.report
        if video is not None:
            episodes.append(report.observations[0])
        _, peak = peak_mib(
            lambda make=make: measure_latency(
                make(1), one, task=trials.task_ids[0], seed=trials.seed, replans=1, warmup=0
            ),
            network_place(outcome.policy.host)[0],
        )
        timed = measure_latency(
            make(1), one, task=trials.task_ids[0], seed=trials.seed, replans=replans, warmup=4
        )
        low, high = report.interval
        found[name] = {
            "success": report.success_rate,
            "low": low,
            "high": high,
            "calls_per_replan": timed.nfe,
            "calls_per_action": report.nfe_per_action,
            "milliseconds": 1e3 * timed.median_s,
            "milliseconds_p95": 1e3 * timed.p95_s,
            "peak_mib": peak,
        }
        first = next(iter(found.values()))
        found[name]["times_faster"] = first["milliseconds"] / found[name]["milliseconds"]
    if video is not None:
        longest = max(map(len, episodes))
        padded = [np.pad(one, ((0, longest - len(one)), (0, 0)), "edge") for one in episodes]
        write_video(film(np.stack(padded), needs=needs), video)
    return found


def save_episodes(report: EvaluationReport, path: Path) -> None:
    """Write recorded episodes to an npz file that `Episodes.load` reads."""
    kept = np.isfinite(report.actions[..., 0])
    ends = np.cumsum(kept.sum(1))
    episodes = Episodes(report.observations[kept], report.actions[kept], ends, report.tasks)
    buffer = BytesIO()
    episodes.save(buffer)
    atomic_write(path, buffer.getvalue())
