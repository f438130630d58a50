"""What `noiseworks-streaming-dp` runs: each verb is one of these functions."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.artifacts import check_folder, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.kits.policies import (
    DenoiserHost,
    DiffusionPolicy,
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    ReplanningPolicy,
    episode_list,
    evaluate,
    load_host,
    measure_latency,
)
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.video import check_video, write_video
from noiseworks.streaming_dp.hosts import KIND, StreamingHost, convert
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS, ChunkLevels
from noiseworks.streaming_dp.policy import BufferInit, StreamingPolicy
from noiseworks.streaming_dp.tabletop_data import RECORDED, TABLETOP, film, load_windows, make_env
from noiseworks.streaming_dp.training import TrainConfig, train

TASKS = (0, 1, 2, 3, 4, 5, 8, 10, 11)
BATCH = 200
ARMS = ("dp", "ddim", "sdp")


@dataclass(frozen=True)
class LevelTable:
    """What `levels` returns.

    Attributes:
        chunks: Complete chunks, h.
        rest: Positions left over, r.
        chunk_of: Chunk of each position.
        levels: Level of each position at the start of an episode.
        calls: Network calls of each cycle until they repeat.
        calls_per_cycle: Their mean, N / h.
        calls_per_action: Network calls per executed action.
    """

    chunks: int
    rest: int
    chunk_of: tuple[int, ...]
    levels: tuple[int, ...]
    calls: tuple[int, ...]
    calls_per_cycle: float
    calls_per_action: float


def levels(*, horizon: int = 16, n_obs: int = 2, n_action: int = 1, num_levels: int = 100) -> LevelTable:
    """Show the buffer's levels and the network calls of each cycle.

    Args:
        horizon: Positions of the buffer.
        n_obs: Observations that the policy reads.
        n_action: Actions executed a cycle.
        num_levels: Noise levels.
    """
    spec = ChunkLevels(num_levels, horizon, n_obs, n_action)
    mean = num_levels / spec.chunks
    calls = tuple(spec.calls(cycle) for cycle in range(spec.period))
    return LevelTable(spec.chunks, spec.rest, spec.chunk_of, spec.buffer, calls, mean, mean / n_action)


def convert_policy(*, policy: str, out: Path, n_action: int = 1) -> dict[str, Any]:
    """Convert an ordinary policy's network to one level per position; fine-tune it with `train` afterwards.

    Args:
        policy: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        out: Directory of the converted policy.
        n_action: Actions of a chunk.
    """
    check_folder(out, KIND, sources=(policy,))
    made = streaming_host(policy, n_action)
    made.save_pretrained(out)
    return {"out": str(out), "parameters": sum(p.numel() for p in made.net.parameters())}


def train_policy(
    *,
    out: Path,
    policy: str | None = None,
    data: str = RECORDED,
    horizon: int = 16,
    n_obs: int = 2,
    n_action: int = 1,
    max_steps: int = 2000,
    weights: tuple[float, float, float, float] = DEFAULT_WEIGHTS,
    batch_size: int = 128,
    learning_rate: float = 5e-4,
    warmup_steps: int = 100,
    checkpoint_every: int = 100,
    resume: bool = True,
    half: bool = False,
    precision: str = "32-true",
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
) -> dict[str, Any]:
    """Train a streaming policy: fine-tune a converted one, or begin anew. A stopped run goes on.

    Args:
        out: Folder of the run; the policy is in its folder model.
        policy: A policy to convert and fine-tune, or a converted one; without it, training begins anew.
        data: An npz file with obs, actions, ends and tasks, testbed:tabletop or testbed:metaworld:TASK.
        horizon: Positions of the buffer, of a new policy.
        n_obs: Observations that a new policy reads.
        n_action: Actions of a chunk.
        max_steps: Optimizer steps.
        weights: Of the regimes constant, increasing, random and chunk-wise.
        batch_size: Windows of a batch, over all processes.
        learning_rate: Peak rate.
        warmup_steps: Steps of linear warm-up.
        checkpoint_every: Steps between checkpoints.
        resume: Whether a used folder goes on or is refused.
        half: Whether the policy is stored in half precision.
        precision: Lightning's precision, such as 32-true or bf16-mixed.
        seed: Of batches, levels and noise.
        device: auto, cpu or cuda.
        devices: Number of processes.
        strategy: Lightning's strategy.
    """
    check_writable(out)
    check_folder(out / "model", KIND, sources=(policy, data))
    config = TrainConfig(
        max_steps=max_steps,
        weights=weights,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        checkpoint_every=checkpoint_every,
        seed=seed,
        precision=precision,
        device=device,
        devices=devices,
        strategy=strategy,
    )
    host = None if policy is None else streaming_host(policy, n_action)
    if host is None:
        sizes = PolicyConfig(horizon=horizon, n_obs_steps=n_obs, n_action_steps=n_action)
        table = load_windows(data, sizes.chunk)
        host = _new_host(sizes, table, seed)
    else:
        table = load_windows(data, host.chunk)
    with redirect_stdout(sys.stderr):  # Lightning's bar and messages; stdout is for the result
        train(host, table, out, config, resume=resume, dtype=torch.float16 if half else torch.float32)
    return {"model": str(out / "model"), "steps": max_steps, "windows": len(table["action"])}


def _new_host(sizes: PolicyConfig, table: dict[str, torch.Tensor], seed: int) -> StreamingHost:
    from dataclasses import replace

    obs_dim, action_dim = table["obs"].shape[-1], table["action"].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = replace(sizes, obs_dim=obs_dim, action_dim=action_dim)
        return StreamingHost(
            config, None, LinearNormalizer.fit(table["action"]), LinearNormalizer.fit(table["obs"])
        )


def streaming_host(policy: str, n_action: int | None = None) -> StreamingHost:
    """Return the streaming policy of a directory, or an ordinary one's conversion, which has seen no training.

    Args:
        policy: A directory of either kind, a checkpoint file of the original library, or testbed:<name>.
        n_action: Actions of a chunk of a conversion.
    """
    import json

    from noiseworks.core.artifacts import CONFIG_NAME

    folder = Path(resolve_model(policy))
    config = folder / CONFIG_NAME
    if config.is_file() and json.loads(config.read_text()).get("kind") == KIND:
        return StreamingHost.from_pretrained(folder)
    host = load_host(policy)
    if not isinstance(host, NativePolicy):
        raise InputError(
            f"the commands take native policies, {policy} is a {type(host).__name__}: use convert, train and "
            "load_converted in Python"
        )
    return convert(host, n_action_steps=n_action)


def rollout(
    *,
    policy: str,
    env: str = TABLETOP,
    tasks: tuple[int, ...] | None = None,
    episodes: int = 5,
    n_action: int | None = None,
    num_levels: int | None = None,
    solver: Solver = "ddpm",
    buffer_init: BufferInit = "zero",
    constant: tuple[float, ...] | None = None,
    renoise_prefix: bool = True,
    disturb: bool = False,
    seed: int = 0,
    video: Path | None = None,
) -> dict[str, Any]:
    """Run a streaming policy and count its successes.

    Args:
        policy: A directory of `train`.
        env: tabletop; metaworld:TASK such as metaworld:reach-v3; or pusht, pusht:keypoints.
        tasks: Task ids of the table; repeat the option for several.
        episodes: Episodes of each task.
        n_action: Actions executed a cycle; the policy's own number by default.
        num_levels: Inference levels; all of the training's by default.
        solver: ddpm or ddim.
        buffer_init: zero, constant or denoise.
        constant: Action for buffer_init constant.
        renoise_prefix: Whether executed actions in the buffer are noised to their label.
        disturb: Whether free discs on the table, or the T, jump now and then.
        seed: First seed of the episodes.
        video: Animated WebP file of the first episode of up to six tasks of the table, with the buffers' paths.

    Returns:
        Success with its interval, network calls, seconds and the figures of each task.
    """
    if video is not None:
        check_video(video)
        check_choice("env of a video", env, (TABLETOP,))
    tasks = (TASKS if env == TABLETOP else (0,)) if tasks is None else tasks
    chosen = episode_list(check_tasks(tasks), episodes, seed)
    host = StreamingHost.from_pretrained(policy)
    options = {"num_levels": num_levels, "solver": solver, "buffer_init": buffer_init, "constant": constant}
    options |= {"n_action_steps": n_action, "renoise_prefix": renoise_prefix}
    stream = StreamingPolicy(host, num_envs=min(BATCH, len(chosen[0])), **options)
    report = evaluate(stream, make_env(env, stream.num_envs, disturb=disturb), *chosen)
    if video is not None:
        shown = StreamingPolicy(host, num_envs=min(6, len(tasks)), **options)
        write_video(record_stream(shown, tasks[:6], seed, disturb=disturb), video)
    return report.summary() | {"tasks": report.by_task()}


def record_stream(
    policy: StreamingPolicy, tasks: tuple[int, ...], seed: int, *, disturb: bool = False
) -> list[np.ndarray]:
    """Return frames of one episode of each task, with the paths that the buffers hold.

    Args:
        policy: Made for as many environments as there are tasks.
        tasks: Task ids.
        seed: Of the episodes.
        disturb: Whether free discs jump now and then.
    """
    env, rows = make_env(TABLETOP, len(tasks), disturb=disturb), np.arange(len(tasks))
    env.reset(rows, np.array(tasks), np.full(len(tasks), seed))
    policy.reset(seeds=[seed] * len(tasks))
    over = np.zeros(len(tasks), bool)
    frames: tuple[list, list, list] = ([], [], [])
    scale = policy.spec.num_levels
    while not over.all():
        table = env.state()
        actions = policy.act({name: torch.from_numpy(value) for name, value in env.observe().items()}).numpy()
        memory = policy.memory.state()
        # From the current action on; the levels are those at the end of the cycle.
        plan = policy.host.normalizer.unnormalize(memory["actions"])[:, policy.spec.first :].numpy()
        noise = (memory["levels"][:, policy.spec.first :].numpy() + 1) / scale
        actions[over] = 0.0
        if frames[0]:
            table[over], plan[over], noise[over] = frames[0][-1][over], 0.0, 1.0
        for kept, value in zip(frames, (table, plan, noise), strict=True):
            kept.append(value)
        result = env.step(actions)
        over |= result.terminated | result.truncated
    return film(*frames)


def bench(
    *,
    policy: str,
    host: str = "testbed:tabletop-unet",
    arms: tuple[str, ...] = ARMS,
    tasks: tuple[int, ...] = TASKS,
    episodes: int = 5,
    replans: int = 20,
    disturb: bool = False,
    compile_network: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a streaming policy with its ordinary host: success, network calls and seconds per replan.

    Args:
        policy: A directory of `train`.
        host: The ordinary policy.
        arms: dp (100 calls, a chunk executed), ddim (10 calls, a chunk executed), sdp; repeat the option.
        tasks: Task ids.
        episodes: Episodes of each task.
        replans: Replans that are timed with one environment.
        disturb: Whether free discs jump now and then.
        compile_network: Whether torch.compile compiles the streaming network.
        seed: First seed of the episodes.

    Returns:
        For each arm success, calls and seconds; `speedup` is dp's seconds per replan over the arm's.
    """
    for arm in arms:
        check_choice("arm", arm, ARMS)
    check_number("replans", replans, low=1, integer=True)
    chosen = episode_list(check_tasks(tasks), episodes, seed)
    ordinary, stream = load_host(host), StreamingHost.from_pretrained(policy)
    found: dict[str, Any] = {}
    for arm in arms:
        batch = min(BATCH, len(chosen[0]))
        many = make_arm(arm, ordinary, stream, batch)
        report = evaluate(many, make_env(TABLETOP, batch, disturb=disturb), *chosen)
        alone = make_arm(arm, ordinary, stream, 1, compile_network=compile_network)
        timed = measure_latency(alone, make_env(TABLETOP, 1), seed=seed, replans=replans, warmup=4)
        found[arm] = report.summary() | {"replan": timed.record()}
    if "dp" in found:
        for row in found.values():
            row["speedup"] = found["dp"]["replan"]["median_s"] / row["replan"]["median_s"]
    return found


def make_arm(
    arm: str,
    host: NativePolicy | DenoiserHost,
    stream: DenoiserHost,
    num_envs: int,
    *,
    compile_network: bool = False,
) -> ReplanningPolicy:
    """Return the policy of an arm of `bench`."""
    if arm == "dp":
        return DiffusionPolicy(host, num_envs=num_envs)
    if arm == "ddim":
        return DiffusionPolicy(host, solver="ddim", num_inference_steps=10, num_envs=num_envs)
    return StreamingPolicy(stream, num_envs=num_envs, compile_network=compile_network)


def check_tasks(tasks: tuple[int, ...]) -> tuple[int, ...]:
    """Return task ids.

    Raises:
        InputError: When one is not in 0 to 11 or there is none.
    """
    if not tasks:
        raise InputError("need at least one task id, 0 to 11")
    for task in tasks:
        check_number("task", task, low=0, high=11, integer=True)
    return tasks
