"""What `noiseworks-bac` runs: each verb is one of these functions."""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from noiseworks.bac import data as observations_of
from noiseworks.bac.bubbling import Scope
from noiseworks.bac.comparison import Arms, compare, make_plans
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.plan import PLAN_KIND, CachePlan, make_plan
from noiseworks.bac.plots import check_suffix, plot_errors, plot_plan, plot_similarity
from noiseworks.bac.profiling import PROFILE_KIND, FeatureProfile, profile
from noiseworks.bac.report import error_report
from noiseworks.bac.scheduling import METRICS, Metric, Objective
from noiseworks.bac.teacache import teacache_threshold
from noiseworks.bac.video import write_episodes
from noiseworks.core.artifacts import CONFIG_NAME, check_folder, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.hosts import load_host
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.video import check_video
from rich.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

Method = Literal["block", "unified", "uniform"]


def profile_policy(
    *,
    model: str,
    out: Path,
    data: str = "tabletop",
    observations: int = 8,
    steps: int | None = None,
    solver: Solver = "ddpm",
    metrics: str = "cosine",
    seed: int = 11,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure how alike each block's outputs are at all pairs of denoising steps.

    The profile is written after every observation; a run that was stopped goes on with the same command.

    Args:
        model: A policy: a directory or testbed:<name>.
        out: Folder for the profile.
        data: tabletop, or an NPZ file whose array `obs` is [n, To, Do].
        observations: How many are averaged.
        steps: Denoising steps K; by default those of the training.
        solver: ddpm or ddim.
        metrics: Comma-separated: cosine, mse, l1, l2, wasserstein.
        seed: Which observations and which noise; below 1000.
        device: auto, cpu, cuda or cuda:<n>.

    Returns:
        The profile's size and the most volatile blocks.
    """
    check_folder(out, PROFILE_KIND, sources=(model, data))
    chosen: list[Metric] = [name for name in metrics.split(",") if name]
    for name in chosen or [metrics]:
        check_choice("metrics", name, METRICS)
    host = load_host(model, device=str(resolve_device(device)))
    obs = observations_of.load_observations(data, host, observations, seed)["obs"]
    made_with = {"data": data, "asked": observations, "seed": seed, "metrics": sorted(chosen)}
    settings = made_with | {"solver": solver, "steps": steps, "fingerprint": find_stack(host).fingerprint()}
    found = FeatureProfile.from_pretrained(out) if out.exists() else None
    if found is not None and found.settings.get("command") != settings:
        raise InputError(f"{out} holds a profile made otherwise; name another folder, or remove that one")
    done = 0 if found is None else found.observations
    with Progress(transient=True) as bars:
        task = bars.add_task("profiling", total=observations, completed=done)
        for row in range(done, observations):
            generator = torch.Generator().manual_seed(seed + row)
            one = profile(
                host,
                {"obs": obs[row : row + 1]},
                num_steps=steps,
                solver=solver,
                metrics=chosen,
                generator=generator,
            )
            one = replace(one, settings=one.settings | {"command": settings})
            found = one if found is None else found.merged(one)
            found.save_pretrained(out)
            bars.advance(task)
    order = np.argsort(-found.volatility, kind="stable")[:5]
    return {
        "out": str(out),
        "blocks": len(found.blocks),
        "steps": found.num_steps,
        "observations": found.observations,
        "most_volatile": [found.blocks[i] for i in order],
    }


@dataclass(frozen=True)
class PlanView:
    """A plan as the command shows it.

    Attributes:
        out: Where it was written, or None.
        plan: The plan.
    """

    out: Path | None
    plan: CachePlan

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's figures and schedules."""
        plan = self.plan
        return {
            "out": None if self.out is None else str(self.out),
            "method": plan.method,
            "steps": plan.num_steps,
            "share": plan.share,
            "settings": plan.settings,
            "schedules": {name: plan.schedule(name) for name in plan.blocks},
        }

    def __rich__(self) -> "Table":
        """Return a table: a row for each block, a mark where it is computed."""
        from rich.table import Table

        plan = self.plan
        table = Table(title=f"{plan.method}: {plan.share:.1%} of the blocks are computed")
        for name in ("block", "updates", f"steps 0 to {plan.num_steps - 1}"):
            table.add_column(name, no_wrap=True)
        width = min(50, plan.num_steps)
        edges = np.linspace(0, plan.num_steps, width + 1).astype(int)
        for name, row in zip(plan.blocks, plan.table, strict=True):
            marks = (row[a:b].sum() for a, b in pairwise(edges))
            text = "".join("·" if not count else "▪" if count == 1 else "█" for count in marks)
            table.add_row(name, str(int(row.sum())), text)
        return table


def plan(
    *,
    profile: Path,
    out: Path | None = None,
    method: Method = "block",
    updates: int = 10,
    objective: Objective = "pairwise",
    metric: Metric = "cosine",
    bubble: int = 5,
    bubble_scope: Scope = "all",
    force_last: bool = True,
    steps: int | None = None,
) -> PlanView:
    """Decide at which steps each block is computed, and show the table.

    Args:
        profile: Folder of a profile.
        out: Folder for the plan; none is written without it.
        method: block (each its own schedule), unified (the first self-attention's for all) or uniform.
        updates: Steps at which a block is computed before bubbling, step 0 among them.
        objective: pairwise (the authors' code) or adjacent (the formula that the paper prints).
        metric: Of the profile's metrics.
        bubble: Most volatile blocks that also update with the feed-forward blocks after them; 0 for none.
        bubble_scope: all, or ffn for feed-forward blocks only.
        force_last: Whether the last step is always computed; without effect on uniform plans.
        steps: Move the plan to another number of steps.

    Returns:
        The plan's view.
    """
    if out is not None:
        check_folder(out, PLAN_KIND, sources=(profile,))
    check_choice("method", method, ("block", "unified", "uniform"))
    measured = FeatureProfile.from_pretrained(profile)
    if method == "uniform":
        check_number("updates", updates, low=1, high=measured.num_steps, integer=True)
        made = CachePlan.uniform(measured.blocks, measured.num_steps, -(-measured.num_steps // updates))
    elif method == "unified":
        made = CachePlan.unified(measured, updates, objective=objective, metric=metric, force_last=force_last)
    else:
        made = make_plan(
            measured,
            updates=updates,
            objective=objective,
            metric=metric,
            bubble=bubble,
            bubble_scope=bubble_scope,
            force_last=force_last,
        )
    made = made if steps is None else made.for_steps(steps)
    if out is not None:
        made.save_pretrained(out)
    return PlanView(out, made)


def heatmap(source: Path, *, out: Path, metric: Metric = "cosine") -> dict[str, Any]:
    """Draw a plan (computed and reused blocks) or a profile (its matrices).

    Args:
        source: Folder of a plan or of a profile.
        out: A file that ends with .svg, .png or .webp.
        metric: Of the profile's metrics.

    Returns:
        The file.
    """
    check_suffix(out)
    check_writable(out.parent)
    config = source / CONFIG_NAME
    if config.is_file() and f'"{PROFILE_KIND}"' in config.read_text():
        plot_similarity(FeatureProfile.from_pretrained(source), out, metric=metric)
    else:
        plot_plan(CachePlan.from_pretrained(source), out)
    return {"out": str(out)}


def errors(
    *,
    model: str,
    plan: Path,
    data: str = "tabletop",
    observations: int = 8,
    seed: int = 12,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare a plan's block outputs with those of the full run with the same noise.

    Args:
        model: A policy: a directory or testbed:<name>.
        plan: Folder of a plan.
        data: tabletop, or an NPZ file whose array `obs` is [n, To, Do].
        observations: How many.
        seed: Which observations and which noise; below 1000.
        out: Picture of the errors by block and step, a file that ends with .svg, .png or .webp.
        device: auto, cpu, cuda or cuda:<n>.

    Returns:
        Mean relative error of reused and of computed outputs for each block, and that of the actions.
    """
    if out is not None:
        check_suffix(out)
        check_writable(out.parent)
    loaded = CachePlan.from_pretrained(plan)
    host = load_host(model, device=str(resolve_device(device)))
    obs = observations_of.load_observations(data, host, observations, seed)
    report = error_report(host, loaded, obs, seed=seed, num_steps=loaded.num_steps)
    if out is not None:
        plot_errors(report, out)
    return report.to_dict()


def rollout(
    *,
    model: str,
    plan: Path | None = None,
    tasks: str = "0,3,8,11",
    seed: int = 0,
    episodes: int = 1,
    video: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run a policy on the testbed `tabletop`, with or without a plan.

    Args:
        model: A policy: a directory or testbed:<name>.
        plan: Folder of a plan; the full policy without it.
        tasks: Comma-separated task numbers, 0 to 11.
        seed: Of the first episode.
        episodes: Episodes of each task.
        video: A file that ends with .webp: the first episode of each task, side by side.
        device: auto, cpu, cuda or cuda:<n>.

    Returns:
        Success and seconds.
    """
    from noiseworks.bac.rollout import roll_out

    if video is not None:
        check_video(video)
    numbers = _tasks(tasks)
    check_number("episodes", episodes, low=1, integer=True)
    check_number("seed", seed, low=0, integer=True)
    loaded = None if plan is None else CachePlan.from_pretrained(plan)
    host = load_host(model, device=str(resolve_device(device)))
    report = roll_out(host, loaded, numbers, episodes, seed)
    if video is not None:
        first = np.arange(len(numbers)) * episodes
        write_episodes(video, *report.film(first))
    return report.summary() | {"plan": None if loaded is None else loaded.method}


def _tasks(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() and int(word) < 12 for word in words):
        raise InputError(f"tasks must be numbers from 0 to 11 with commas, got {text!r}")
    return [int(word) for word in words]


@dataclass(frozen=True)
class Comparison:
    """The arms of a benchmark side by side.

    Attributes:
        rows: Arm -> figures.
    """

    rows: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return asdict(self)["rows"]

    def __rich__(self) -> "Table":
        """Return a table, one row for each arm."""
        from rich.table import Table

        table = Table("arm", "ms a replan", "times faster", "blocks computed", "action error")
        for name, row in self.rows.items():
            share = "" if row["share"] is None else f"{row['share']:.1%}"
            cells = (
                f"{row['milliseconds']:.1f}",
                f"{row['times_faster']:.2f}",
                share,
                f"{row['action_error']:.5f}",
            )
            table.add_row(name, *cells)
        return table


def bench(
    *,
    model: str,
    profile: Path,
    updates: int = 10,
    bubble: int = 5,
    data: str = "tabletop",
    observations: int = 16,
    batch_size: int = 1,
    repeats: int = 5,
    seed: int = 12,
    device: str = "auto",
) -> Comparison:
    """Time the full policy, its baselines and the plans in turn, with the error of their actions.

    Args:
        model: A policy: a directory or testbed:<name>.
        profile: Folder of its profile.
        updates: Steps at which a block is computed; also the steps of DDIM and of the truncated run.
        bubble: Most volatile blocks that bubble up in the arm `bac`.
        data: tabletop, or an NPZ file whose array `obs` is [n, To, Do].
        observations: Over how many the actions' error is averaged.
        batch_size: Observations of a timed replan.
        repeats: Timed replans of each arm.
        seed: Which observations and which noise; below 1000.
        device: auto, cpu, cuda or cuda:<n>.

    Returns:
        A table: milliseconds, times faster than the full policy, share of computed blocks, error of the actions.
    """
    measured = FeatureProfile.from_pretrained(profile)
    plans = make_plans(measured, updates, bubble)
    check_number("batch_size", batch_size, low=1, high=observations, integer=True)
    host = load_host(model, device=str(resolve_device(device)))
    obs = observations_of.load_observations(data, host, observations, seed)
    generator = torch.Generator().manual_seed(seed)
    threshold = teacache_threshold(host, obs, updates, num_steps=measured.num_steps, generator=generator)
    arms = Arms(host, plans, updates, measured.num_steps, threshold)
    with Progress(transient=True) as bars:
        task = bars.add_task("timing", total=repeats + 1)
        found = compare(
            arms,
            obs,
            batch_size=batch_size,
            repeats=repeats,
            seed=seed,
            progress=lambda turn: bars.update(task, completed=turn + 1),
        )
    return Comparison(found)
