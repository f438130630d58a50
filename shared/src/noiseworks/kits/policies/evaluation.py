"""The evaluation protocol: the same initial states for every policy, success with intervals, calls and latency."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from noiseworks.core.checks import check_number, check_seed
from noiseworks.core.errors import InputError
from noiseworks.core.timing import in_turns
from noiseworks.kits.policies.protocols import BatchEnv, Step
from noiseworks.kits.policies.replanning import PolicyStats, ReplanningPolicy

EVALUATION_SEED = 10_000
EPISODES_PER_TASK = 50
_Z95 = 1.959963984540054

# Told of every step: numbers of the running episodes, what the policy saw of them, what they executed, what all
# environments returned, and the episodes' places in that.
Watch = Callable[[np.ndarray, dict[str, np.ndarray], np.ndarray, Step, np.ndarray], None]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share.

    Raises:
        InputError: When n is below 1 or `successes` is not in 0 to n.
    """
    check_number("n", n, low=1, integer=True)
    check_number("successes", successes, low=0, high=n, integer=True)
    share, z2 = successes / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else float(middle - half)
    return low, 1.0 if successes == n else float(middle + half)


@dataclass(frozen=True)
class EvaluationReport:
    """Episodes of an evaluation and what the policy spent on them.

    Attributes:
        tasks: Task of each episode, int64 [E].
        seeds: Seed of each episode, int64 [E].
        success: Whether it was solved, bool [E].
        steps: Steps until success or the end, int64 [E].
        nfe_per_action: Network calls per executed action.
        nfe_per_replan: Mean network calls of a replan.
        latencies: Seconds of each replan (of a batch of environments), float64.
        actions: Executed actions where they were recorded, float32 [E, S, Da], NaN after the end; else None.
        observations: The policy's observations before each action, likewise, or None.
    """

    tasks: np.ndarray
    seeds: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    nfe_per_action: float
    nfe_per_replan: float
    latencies: np.ndarray
    actions: np.ndarray | None = None
    observations: np.ndarray | None = None

    @property
    def success_rate(self) -> float:
        """Share of all episodes that were solved."""
        return float(self.success.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `success_rate`."""
        return wilson_interval(int(self.success.sum()), len(self.success))

    def by_task(self) -> dict[int, dict[str, float | None]]:
        """Return success, its interval, the number of episodes and the median steps to success of each task.

        Tasks that were never solved have None for the steps.
        """
        table = {}
        for task in np.unique(self.tasks).tolist():
            rows = self.tasks == task
            low, high = wilson_interval(int(self.success[rows].sum()), int(rows.sum()))
            solved = self.steps[rows & self.success]
            median = float(np.median(solved)) if len(solved) else None
            table[task] = {"success": float(self.success[rows].mean()), "low": low, "high": high}
            table[task] |= {"n": int(rows.sum()), "steps": median}
        return table

    def summary(self) -> dict[str, Any]:
        """Return the figures of all tasks together, for JSON."""
        low, high = self.interval
        solved = self.steps[self.success]
        return {
            "success": self.success_rate,
            "low": low,
            "high": high,
            "episodes": len(self.success),
            "steps_to_success": float(np.median(solved)) if len(solved) else None,
            "nfe_per_action": self.nfe_per_action,
            "nfe_per_replan": self.nfe_per_replan,
            "latency_median_s": float(np.median(self.latencies)),
            "latency_p95_s": float(np.quantile(self.latencies, 0.95)),
        }


def episode_list(
    tasks: Sequence[int], episodes: int = EPISODES_PER_TASK, seed: int = EVALUATION_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Return the protocol's episodes: for every task the seeds `seed`, `seed + 1` and so on.

    Args:
        tasks: Task ids.
        episodes: Episodes of each task.
        seed: First seed; below 1000 to tune, 10 000 to judge.

    Returns:
        Tasks and seeds, int64 [len(tasks) episodes] each.
    """
    check_number("episodes", episodes, low=1, integer=True)
    check_seed("seed", seed)
    return np.repeat(np.asarray(tasks, np.int64), episodes), np.tile(
        np.arange(seed, seed + episodes), len(tasks)
    )


class _Recorder:
    def __init__(self, episodes: int) -> None:
        self.actions: list[list[np.ndarray]] = [[] for _ in range(episodes)]
        self.observations: list[list[np.ndarray]] = [[] for _ in range(episodes)]

    def add(self, numbers: np.ndarray, obs: dict[str, np.ndarray], actions: np.ndarray) -> None:
        first = next(iter(obs.values()))
        for row, number in enumerate(numbers.tolist()):
            self.actions[number].append(actions[row])
            self.observations[number].append(first[row])

    @staticmethod
    def padded(lists: list[list[np.ndarray]]) -> np.ndarray:
        out = np.full((len(lists), max(map(len, lists)), *lists[0][0].shape), np.nan, np.float32)
        for row, items in enumerate(lists):
            out[row, : len(items)] = items
        return out


def evaluate(
    policy: ReplanningPolicy,
    env: BatchEnv,
    tasks: np.ndarray,
    seeds: np.ndarray,
    *,
    record: bool = False,
    watch: Watch | None = None,
) -> EvaluationReport:
    """Run every episode of a list in a batch of environments; a row that ends takes the next episode.

    An episode's start depends on (task, seed) alone and its noise on the seed, whatever the batch size.

    Args:
        policy: A policy made for `env.num_envs` environments; its statistics are cleared.
        env: The environments.
        tasks: Task of each episode, int [E].
        seeds: Seed of each episode, int [E].
        record: Whether observations and actions are kept.
        watch: Told of every step, such as `Rollouts.add` of `hosts.lerobot_dataset`.

    Returns:
        The report, with episodes in the order of the list.

    Raises:
        InputError: When the list is empty or the policy was made for another number of environments.
    """
    tasks, seeds = np.asarray(tasks, np.int64), np.asarray(seeds, np.int64)
    if len(tasks) != len(seeds) or not len(tasks):
        raise InputError(f"need one seed per task and at least one, got {len(tasks)} and {len(seeds)}")
    if policy.num_envs != env.num_envs:
        raise InputError(f"the policy is made for {policy.num_envs} environments, there are {env.num_envs}")
    policy.stats = PolicyStats()
    success, steps = np.zeros(len(tasks), bool), np.zeros(len(tasks), np.int64)
    recorder = _Recorder(len(tasks)) if record else None
    number = np.full(env.num_envs, -1)
    waiting = 0

    def begin(rows: np.ndarray) -> None:
        nonlocal waiting
        rows = rows[: len(tasks) - waiting]
        chosen = np.arange(waiting, waiting + len(rows))
        waiting += len(rows)
        number[rows] = chosen
        if len(rows):
            env.reset(rows, tasks[chosen], seeds[chosen])
            policy.reset(rows.tolist(), seeds[chosen].tolist())

    begin(np.arange(env.num_envs))
    actions = np.zeros((env.num_envs, policy.host.action_dim))
    while len(rows := np.flatnonzero(number >= 0)):
        obs = {name: value[rows] for name, value in env.observe().items()}
        chosen = policy.act({n: torch.from_numpy(v) for n, v in obs.items()}, rows.tolist())
        actions[rows] = chosen.cpu().numpy()
        if recorder:
            recorder.add(number[rows], obs, actions[rows].copy())
        result = env.step(actions)
        if watch is not None:
            watch(number[rows], obs, actions[rows], result, rows)
        steps[number[rows]] += 1
        ended = rows[(result.terminated | result.truncated)[rows]]
        success[number[ended]] = result.terminated[ended]
        number[ended] = -1
        begin(ended)
    stats = policy.stats
    return EvaluationReport(
        tasks,
        seeds,
        success,
        steps,
        stats.nfe_per_action,
        float(np.average(stats.nfes, weights=stats.batches)),
        np.array(stats.latencies),
        recorder and recorder.padded(recorder.actions),
        recorder and recorder.padded(recorder.observations),
    )


@dataclass(frozen=True)
class Latency:
    """Seconds of one replan for one environment.

    Attributes:
        median_s: Median.
        p95_s: 95 % quantile.
        nfe: Network calls of a replan.
        repeats: Replans measured.
    """

    median_s: float
    p95_s: float
    nfe: float
    repeats: int

    def record(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return asdict(self)


def measure_latency(
    policy: ReplanningPolicy,
    env: BatchEnv,
    *,
    task: int = 0,
    seed: int = 0,
    replans: int = 20,
    warmup: int = 2,
) -> Latency:
    """Time replans in an episode with one environment; the first `warmup` ones are left out.

    Args:
        policy: A policy made for one environment.
        env: One environment; restarted when an episode ends.
        task: Task of the episodes.
        seed: Seed of the first episode.
        replans: Replans measured.
        warmup: Replans before them, which may be longer (caches, a first full denoising).

    Raises:
        InputError: When more than one environment is given or `replans` is below 1.
    """
    check_number("replans", replans, low=1, integer=True)
    check_number("warmup", warmup, low=0, integer=True)
    if env.num_envs != 1 or policy.num_envs != 1:
        raise InputError(f"latency is measured with one environment, got {env.num_envs}")
    policy.stats = PolicyStats()
    ended = True
    while len(policy.stats.latencies) < replans + warmup:
        if ended:
            env.reset(np.zeros(1, np.int64), np.array([task]), np.array([seed]))
            policy.reset([0], [seed])
            seed += 1
        obs = {name: torch.from_numpy(value) for name, value in env.observe().items()}
        result = env.step(policy.act(obs).cpu().numpy())
        ended = bool(result.terminated[0] or result.truncated[0])
    times = np.array(policy.stats.latencies[warmup:])
    nfe = float(np.mean(policy.stats.nfes[warmup:]))
    return Latency(float(np.median(times)), float(np.quantile(times, 0.95)), nfe, len(times))


def time_in_turns(
    policies: Mapping[str, ReplanningPolicy],
    env: BatchEnv,
    *,
    turns: int,
    task: int = 0,
    seed: int = 0,
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Return the seconds of replans of several policies on one observation, one action executed between two.

    Policies take turns, so that a busy machine slows all of them alike.

    Args:
        policies: Name -> a policy made for one environment.
        env: One environment.
        turns: Replans of each that are counted.
        task: Task of the observation.
        seed: Seed of the episode.
        warmup: Replans before them, which may be longer (a first full denoising, tables that are filled).

    Raises:
        InputError: When a number is out of range or there is more than one environment.
    """
    if env.num_envs != 1 or any(policy.num_envs != 1 for policy in policies.values()):
        raise InputError(f"replans are timed with one environment, got {env.num_envs}")
    env.reset(np.zeros(1, np.int64), np.array([task]), np.array([seed]))
    obs = {name: torch.from_numpy(value) for name, value in env.observe().items()}
    for policy in policies.values():
        policy.reset([0], [seed])

    def replan(policy: ReplanningPolicy, turn: int) -> float:
        policy.remember(obs, [0])
        seconds = policy.replan([0]).latency_s
        policy.executed([0])
        return seconds

    arms = {name: partial(replan, policy) for name, policy in policies.items()}
    # The replan alone counts, which a policy times itself.
    return {
        name: list(times.results) for name, times in in_turns(arms, turns, warmup=warmup, keep=True).items()
    }
