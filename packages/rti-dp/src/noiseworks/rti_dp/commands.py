"""What `noiseworks-rti-dp` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate, measure_latency
from noiseworks.kits.policies.hosts import load_host
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import DiffusionPolicy, ReplanningPolicy
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.video import check_video, write_video
from noiseworks.rti_dp.baselines import EnsemblePolicy, TruncatedPolicy
from noiseworks.rti_dp.discrete import DiscreteSpec
from noiseworks.rti_dp.policy import RTIPolicy
from noiseworks.rti_dp.published import published_steps
from noiseworks.rti_dp.scaling import parse_dims
from noiseworks.rti_dp.stepping import StepNoise, Stepping
from noiseworks.rti_dp.suggestion import suggest_steps
from noiseworks.rti_dp.testbed_data import TABLETOP, film, load_episodes, make_env

TASKS = "0,1,2,3,4,5,11"
DDIM_STEPS = 10


def suggest(
    *,
    policy: str,
    data: str,
    nfe: int = 3,
    discrete: str = "none",
    c: float = 1.0,
    pairs: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Suggest a list of steps from recorded episodes, and show how far a moved plan is from a new one.

    Args:
        policy: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        data: An npz file with obs, actions, ends and tasks, testbed:tabletop or testbed:metaworld:TASK.
        nfe: Length of the list.
        discrete: Discrete dimensions as in `rollout`; they are left out of the choice.
        c: Factor of the residual that the first step's noise has to cover.
        pairs: Pairs of neighbouring steps that are compared.
        seed: Of the choice of pairs and of the noise.
    """
    spec = DiscreteSpec.parse(discrete)
    check_number("pairs", pairs, low=1, integer=True)
    host, episodes = load_host(policy), load_episodes(data)
    return asdict(suggest_steps(host, episodes, nfe, discrete_dims=spec.dims, c=c, pairs=pairs, seed=seed))


def rollout(
    *,
    policy: str,
    env: str = "tabletop",
    steps: str = "2,1,0",
    discrete: str = "none",
    stepping: Stepping = "consistent",
    solver: Solver = "ddpm",
    noise: StepNoise = "posterior",
    execute: int = 1,
    initial_steps: int | None = None,
    refresh_every: int | None = None,
    tasks: str | None = None,
    episodes: int = 5,
    seed: int = 0,
    disturb: bool = False,
    latency: int = 0,
    video: Path | None = None,
    record: Path | None = None,
) -> dict[str, Any]:
    """Run a policy by real-time iteration and count its successes.

    Args:
        policy: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        env: tabletop; metaworld:TASK such as metaworld:reach-v3 (extra [metaworld]); or pusht, pusht:keypoints,
            pusht:pixels (extra [pusht] of noiseworks-bench).
        steps: Denoising indices of a warm replan, decreasing to 0; or the authors' for TASK:MODE:OBSERVATION, such
            as square:scale:lowdim.
        discrete: Discrete dimensions: none, or DIMS:MODE:FACTOR with mode clip or scale, such as 2:clip:10.
        stepping: consistent, or reference (each step leads to k - 1).
        solver: ddpm or ddim.
        noise: posterior or none.
        execute: Actions executed of each prediction.
        initial_steps: Network calls of an episode's first replan; all of the training's by default.
        refresh_every: Warm replans after which an environment starts cold again.
        tasks: Task ids; on the table by default those with a gripper, 0,1,2,3,4,5,11.
        episodes: Episodes of each task.
        seed: First seed of the episodes.
        disturb: Whether free discs on the table, or the T, jump now and then.
        latency: Steps, 0 to 4, by which an action acts late.
        video: Animated WebP file of the first episode of each task, on the table.
        record: npz file of the episodes, for `suggest`.

    Returns:
        Success with its interval, network calls, seconds, restarts and the figures of each task.
    """
    if video is not None:
        check_video(video)
        check_choice("env of a video", env, (TABLETOP,))
    chosen = episode_list(tasks_of(env, tasks), episodes, seed)
    spec, host = DiscreteSpec.parse(discrete), load_host(policy)
    tables = make_env(env, min(200, len(chosen[0])), disturb=disturb, latency=latency)
    rti = RTIPolicy(
        host,
        parse_steps(steps),
        stepping=stepping,
        discrete=spec,
        execute=execute,
        solver=solver,
        noise=noise,
        initial_steps=initial_steps,
        refresh_every=refresh_every,
        num_envs=tables.num_envs,
    )
    report = evaluate(rti, tables, *chosen, record=video is not None or record is not None)
    if video is not None:
        write_video(film(report.observations[::episodes]), video)
    if record is not None:
        save_episodes(report, record)
    tasks_table = {str(task): row["success"] for task, row in report.by_task().items()}
    return report.summary() | {"restarts": rti.restarts, "success_by_task": tasks_table}


def bench(
    *,
    policy: str,
    steps: str = "2,1,0",
    discrete: str = "none",
    stepping: Stepping = "consistent",
    env: str = TABLETOP,
    tasks: str | None = None,
    episodes: int = 5,
    seed: int = 0,
    disturb: bool = False,
    replans: int = 20,
) -> dict[str, dict[str, float]]:
    """Compare real-time iteration with the full sampler, DDIM, temporal ensembling and the same steps from fresh noise.

    Args:
        policy: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        steps: Denoising indices of a warm replan.
        discrete: Discrete dimensions as in `rollout`.
        stepping: consistent or reference.
        env: The environment, as in `rollout`.
        tasks: Task ids, as in `rollout`.
        episodes: Episodes of each task, the same for all policies.
        seed: First seed of the episodes.
        disturb: Whether free discs on the table, or the T, jump now and then.
        replans: Replans whose time is measured, one environment at a time.

    Returns:
        For each policy: success, network calls a replan and an action, milliseconds a replan, and how many
        times faster than the full sampler a replan is.
    """
    chosen = episode_list(tasks_of(env, tasks), episodes, seed)
    spec, host, words = DiscreteSpec.parse(discrete), load_host(policy), parse_steps(steps)
    check_number("replans", replans, low=1, integer=True)
    tables, one = (make_env(env, n, disturb=disturb) for n in (min(200, len(chosen[0])), 1))
    found: dict[str, dict[str, float]] = {}
    for name in ("full", "ddim", "ensemble", "truncated", "rti"):
        many, single = (policies(host, words, stepping, spec, n)[name] for n in (tables.num_envs, 1))
        report = evaluate(many, tables, *chosen)
        time = measure_latency(single, one, replans=replans if name != "full" else max(3, replans // 4))
        found[name] = {
            "success": report.success_rate,
            "calls_per_replan": time.nfe,
            "calls_per_action": report.nfe_per_action,
            "milliseconds": 1e3 * time.median_s,
            "milliseconds_p95": 1e3 * time.p95_s,
            "times_faster": found["full"]["milliseconds"] / (1e3 * time.median_s) if found else 1.0,
        }
    return found


def policies(
    host: DenoiserHost, steps: tuple[int, ...], stepping: Stepping, spec: DiscreteSpec, num_envs: int
) -> dict[str, ReplanningPolicy]:
    """Return the policies that `bench` compares, each for a number of environments."""
    return {
        "full": DiffusionPolicy(host, num_envs=num_envs),
        "ddim": DiffusionPolicy(host, solver="ddim", num_inference_steps=DDIM_STEPS, num_envs=num_envs),
        "ensemble": EnsemblePolicy(host, num_inference_steps=DDIM_STEPS, num_envs=num_envs),
        "truncated": TruncatedPolicy(host, steps, stepping=stepping, num_envs=num_envs),
        "rti": RTIPolicy(host, steps, stepping=stepping, discrete=spec, num_envs=num_envs),
    }


def save_episodes(report: EvaluationReport, path: Path) -> None:
    """Write recorded episodes to an npz file that `Episodes.load` reads."""
    from io import BytesIO

    from noiseworks.core.artifacts import atomic_write

    kept = np.isfinite(report.actions[..., 0])
    ends = np.cumsum(kept.sum(1))
    episodes = Episodes(report.observations[kept], report.actions[kept], ends, report.tasks)
    buffer = BytesIO()
    episodes.save(buffer)
    atomic_write(path, buffer.getvalue())


def parse_steps(text: str) -> tuple[int, ...]:
    """Return the indices of a list such as `3,1,0`, or of the authors' `TASK:MODE:OBSERVATION`.

    Raises:
        InputError: When a word is no whole number, or there is no such list.
    """
    if ":" in text:
        task, mode, *rest = text.split(":")
        return published_steps(task, mode, ":".join(rest) or "lowdim")
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(f"steps must be whole numbers such as 3,1,0, got {text!r}") from error


def tasks_of(env: str, tasks: str | None) -> list[int]:
    """Return the task ids that a command names, by default the table's with a gripper, or an environment's only one."""
    return parse_tasks(tasks or (TASKS if env == TABLETOP else "0"))


def parse_tasks(text: str) -> list[int]:
    """Return task ids of the table.

    Raises:
        InputError: When a word is no id.
    """
    tasks = parse_dims(text)
    wrong = [task for task in tasks if not 0 <= task <= 11]
    if wrong:
        raise InputError(f"tasks must lie in 0 to 11, got {wrong[0]}")
    return tasks
