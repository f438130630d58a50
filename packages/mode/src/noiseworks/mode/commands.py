"""The commands `eval`, `cache`, `usage` and `bench`; `train` and `finetune` are in `train_command`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from noiseworks.core.artifacts import check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.video import check_video, write_video
from noiseworks.mode.caching import Form
from noiseworks.mode.cameras import TABLE_CAMERA, TableCamera
from noiseworks.mode.edm import Grid
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.network import Condition
from noiseworks.mode.pictures import check_suffix, draw_usage, tile
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.routing import usage_information
from noiseworks.mode.samplers import Sampler
from noiseworks.mode.shipped import load_model
from noiseworks.mode.task_data import TABLETOP, tabletop
from noiseworks.mode.timing import compare, random_condition
from noiseworks.mode.vision import ImageEncoder

NUM_TASKS = 12
MAX_ENVS = 300


def eval_policy(
    policy: str,
    *,
    env: Literal["tabletop"] = "tabletop",
    tasks: list[int] | None = None,
    episodes: int = 10,
    seed: int = 0,
    experts: Literal["cached", "routed"] = "cached",
    sampler: Sampler = "ddim",
    steps: int = 10,
    grid: Grid = "exponential",
    churn: float = 0.0,
    disturb: bool = False,
    video: Path | None = None,
) -> dict[str, Any]:
    """Run a policy in an environment and count its successes.

    Args:
        policy: A model directory, or shipped:<name>.
        env: The environment: tabletop.
        tasks: Task ids 0 to 11; by default all.
        episodes: Episodes of each task.
        seed: First seed of the episodes; the same seeds are the same start states for every policy.
        experts: Whether experts come from the cache or are routed in every call; a dense model has neither.
        sampler: The sampler; ddim is the paper's.
        steps: Noise levels of the sampler.
        grid: How they are spaced.
        churn: Noise that the samplers euler, heun and dpm2 add before each step.
        disturb: Whether free discs jump now and then.
        video: Animated WebP file of the first episode of each task.

    Returns:
        Success with its interval, network calls, seconds, the cache's hit rate and the success of each task.
    """
    check_choice("env", env, (TABLETOP,))
    check_choice("experts", experts, ("cached", "routed"))
    chosen = check_tasks(tasks)
    if video is not None:
        check_video(video)
    episode_tasks, seeds = episode_list(chosen, episodes, seed)
    tables = tabletop().TabletopBatch(min(MAX_ENVS, len(seeds)), disturb=disturb)
    model = load_model(policy)
    if isinstance(model.encoder, ImageEncoder):
        if model.encoder.cameras != (TABLE_CAMERA,):
            raise InputError(f"{TABLETOP} has the camera {TABLE_CAMERA}, the model {model.encoder.cameras}")
        tables = TableCamera(tables, tabletop(), model.encoder.size or 32)
    runner = EDMPolicy(
        model,
        sampler=sampler,
        num_inference_steps=steps,
        grid=grid,
        churn=churn,
        num_envs=tables.num_envs,
    )
    if experts == "cached" and not model.config.dense:
        runner.cache_experts()
    report = evaluate(runner, tables, episode_tasks, seeds, record=video is not None)
    if video is not None:
        write_video(tile(_pictures(report, episodes)), video)
    found = {"success_by_task": {str(t): row["success"] for t, row in report.by_task().items()}}
    if runner.cache is not None:
        found["cache_hit_rate"] = runner.cache.report().hit_rate
    return report.summary() | found


def check_tasks(tasks: list[int] | None) -> list[int]:
    """Return task ids, all by default.

    Raises:
        InputError: When one is out of range.
    """
    for task in tasks or []:
        check_number("task", task, low=0, high=NUM_TASKS - 1, integer=True)
    return list(range(NUM_TASKS)) if tasks is None else tasks


def _pictures(report: EvaluationReport, every: int) -> list[np.ndarray]:
    module, made = tabletop(), []
    for episode in report.observations[::every]:
        length = int(np.isfinite(episode[:, 0]).sum())
        made.append(module.render(episode[:length, :21]))
    return made


def cache(policy: str, *, steps: int = 10, form: Form = "merged") -> dict[str, Any]:
    """Cache a policy's experts for a number of steps, and measure that nothing changes.

    Args:
        policy: A model directory, or shipped:<name>.
        steps: Noise levels of the sampler.
        form: merged (one MLP per block and level) or bmm (a batched product, less memory).

    Returns:
        Steps, layers, different choices of experts, bytes, hit rates and the greatest difference from routing at
        batch sizes 1, 7 and 64.
    """
    model = load_model(policy)
    runner = EDMPolicy(model, num_inference_steps=steps)
    made = runner.cache_experts(steps, form)
    found = {f"largest_difference_batch_{n}": largest_difference(runner, n) for n in (1, 7, 64)}
    counts = runner.cache.report()
    return asdict(made) | found | {"hits": counts.hits, "misses": counts.misses, "hit_rate": counts.hit_rate}


@torch.no_grad()
def largest_difference(policy: EDMPolicy, batch: int, seed: int = 0, cond: Condition | None = None) -> float:
    """Return the greatest |cached - routed| of a denoiser call, over all levels of a sampler.

    Args:
        policy: A policy with a cache.
        batch: Rows.
        seed: Of the noisy actions, normals of the level's scale.
        cond: Conditions of the rows; by default normal draws, which are wilder than what a policy meets.

    Raises:
        InputError: When the policy has no cache.
    """
    if policy.cache is None:
        raise InputError("the policy has no cache: call cache_experts first")
    config, generator = policy.model.config, torch.Generator().manual_seed(seed)

    cond = random_condition(policy.model, batch, generator) if cond is None else cond
    found = 0.0
    for sigma in policy.evaluations:
        scale = (sigma**2 + config.sigma_data**2) ** 0.5
        x = scale * torch.randn((batch, config.chunk, config.action_dim), generator=generator)
        routed = policy.model.denoise(x, torch.full((batch,), sigma, dtype=torch.float64), cond)
        found = max(found, float((policy.denoise(x, sigma, cond) - routed).abs().max()))
    return found


def usage(policy: str, *, steps: int = 10, out: Path | None = None) -> dict[str, Any]:
    """Show which experts a policy uses at which noise level.

    Args:
        policy: A model directory, or shipped:<name>.
        steps: Noise levels of the sampler.
        out: PNG or WebP file of the heat map.

    Returns:
        Bits of information between level and expert per layer, each expert's share over all levels, and the weights
        [layers, steps, experts].
    """
    if out is not None:
        check_suffix(out, (".png", ".webp"))
        check_writable(out.parent)
    runner = EDMPolicy(load_model(policy), num_inference_steps=steps)
    table = runner.expert_usage()
    if out is not None:
        draw_usage(table, runner.sigmas[:-1], out)
    return {
        "bits": usage_information(table).tolist(),
        "share": table.mean(dim=1).tolist(),
        "usage": table.tolist(),
    }


def bench(
    policy: str,
    *,
    against: str | None = None,
    batch: int = 1,
    repeats: int = 30,
    device: str = "cpu",
    backend: str | None = None,
) -> dict[str, Any]:
    """Time a replan with routed and with cached experts, one after the other in turns.

    Args:
        policy: A model directory, or shipped:<name>.
        against: A dense model to compare with, likewise.
        batch: Environments that replan together.
        repeats: Replans of each kind; the median counts.
        device: cpu or cuda.
        backend: Also times merged experts, and the dense model, compiled by that backend of torch.compile, such as
            inductor or cudagraphs.

    Returns:
        Median seconds of each kind and its ratio to routing, and the operations of a denoiser call.
    """
    check_number("batch", batch, low=1, integer=True)
    check_number("repeats", repeats, low=1, integer=True)
    model = load_model(policy).to(device)
    kinds = {"routed": EDMPolicy(model)}
    for form in ("merged", "bmm"):
        kinds[form] = EDMPolicy(model)
        kinds[form].cache_experts(form=form)
    flops = {"flops": denoiser_flops(model.config, batch=batch, cached=True)}
    if against is not None:
        dense = load_model(against).to(device)
        kinds["dense"] = EDMPolicy(dense)
        flops["dense_flops"] = denoiser_flops(dense.config, batch=batch)
    if backend is not None:
        for name in [name for name in ("merged", "dense") if name in kinds]:
            twin = kinds[f"{name}_compiled"] = EDMPolicy(kinds[name].model)
            twin.cache = kinds[name].cache
            twin.compile(backend)
    seconds = compare(kinds, batch, repeats)
    return {name: {"seconds": s, "ratio": s / seconds["routed"]} for name, s in seconds.items()} | flops
