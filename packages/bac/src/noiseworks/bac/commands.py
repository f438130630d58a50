"""What `noiseworks-bac` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.bac.options import (
    Checking,
    Choice,
    Metric,
    Pictures,
    Profiling,
    Schedule,
    Timing,
    check_picture,
)
from noiseworks.core.artifacts import CONFIG_NAME, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Place, Spread
from noiseworks.core.output import check_file
from noiseworks.kits.policies.options import Keep, Trials

PLAN_KIND, PROFILE_KIND = "bac/plan", "bac/profile"


def _load(model: str, place: Place) -> Any:
    from noiseworks.kits.policies.hosts import load_host

    return load_host(model, device=str(place.torch_device()))


def profile_policy(
    *, model: str, out: Path, profiling: Spread[Profiling] = Profiling(), place: Spread[Place] = Place()
) -> dict[str, Any]:
    """Measure how alike each block's outputs are at all pairs of denoising steps.

    The profile is written after every observation; a run that was stopped goes on with the same command.

    Args:
        model: A policy: a directory or testbed:<name>.
        out: Folder for the profile.
        profiling: What is measured.
        place: Where it runs.

    Returns:
        The profile's size and the most volatile blocks.
    """
    check_folder(out, PROFILE_KIND, sources=(model, profiling.data))
    from noiseworks.bac.offline import profile_into, summary

    return summary(out, profile_into(out, _load(model, place), profiling))


def plan(
    *,
    profile: Path,
    model: str | None = None,
    out: Path | None = None,
    choice: Spread[Choice] = Choice(),
    schedule: Spread[Schedule] = Schedule(),
    checking: Spread[Checking] = Checking(),
    place: Spread[Place] = Place(),
) -> Any:
    """Decide at which steps each block is computed, and show the table.

    Args:
        profile: Folder of a profile.
        model: The policy, on which method best measures plans: a directory or testbed:<name>.
        out: Folder for the plan; none is written without it.
        choice: Which plan is made.
        schedule: How it is made from the profile.
        checking: On what method best measures.
        place: Where it runs.

    Returns:
        The plan's view.
    """
    if out is not None:
        check_folder(out, PLAN_KIND, sources=(profile, model))
    if choice.method == "best" and model is None:
        raise InputError("method best measures plans on the policy: name it with --model, or choose a method")
    from noiseworks.bac.choosing import best_plan, candidates
    from noiseworks.bac.offline import actions_of
    from noiseworks.bac.plan import CachePlan, make_plan
    from noiseworks.bac.profiling import FeatureProfile
    from noiseworks.bac.tables import PlanView

    measured, tried = FeatureProfile.from_pretrained(profile), []
    if choice.method == "best":
        host = _load(model, place)
        run = actions_of(host, checking, measured.num_steps)
        made, tried = best_plan(host, candidates(measured, schedule=schedule), run, choice.budget)
    elif choice.method == "block":
        made = make_plan(measured, schedule)
    elif choice.method == "unified":
        made = CachePlan.unified(measured, schedule)
    else:
        made = CachePlan.of_updates(measured, schedule.updates)
    made = made if choice.moved_to is None else made.for_steps(choice.moved_to)
    if out is not None:
        made.save_pretrained(out)
    return PlanView(out, made, tuple(tried))


def heatmap(source: Path, *, out: Path, metric: Metric = "cosine") -> dict[str, Any]:
    """Draw a plan (computed and reused blocks) or a profile (its matrices).

    Args:
        source: Folder of a plan or of a profile.
        out: A file that ends with .svg, .png or .webp.
        metric: Of the profile's metrics.

    Returns:
        The file.
    """
    check_picture(out)
    from noiseworks.bac.plan import CachePlan
    from noiseworks.bac.plots import plot_plan, plot_similarity
    from noiseworks.bac.profiling import FeatureProfile

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
    checking: Spread[Checking] = Checking(),
    out: Path | None = None,
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Compare a plan's block outputs with those of the full run with the same noise.

    Args:
        model: A policy: a directory or testbed:<name>.
        plan: Folder of a plan.
        checking: On what errors are measured.
        out: Picture of the errors by block and step, a file that ends with .svg, .png or .webp.
        place: Where it runs.

    Returns:
        Mean relative error of reused and of computed outputs for each block, and that of the actions.
    """
    if out is not None:
        check_picture(out)
    from noiseworks.bac.data import load_observations
    from noiseworks.bac.plan import CachePlan
    from noiseworks.bac.plots import plot_errors
    from noiseworks.bac.report import error_report

    loaded, host = CachePlan.from_pretrained(plan), _load(model, place)
    obs = load_observations(checking.data, host, checking.observations, checking.seed)
    report = error_report(host, loaded, obs, seed=checking.seed, num_steps=loaded.num_steps)
    if out is not None:
        plot_errors(report, out)
    return report.to_dict()


def eval_policy(
    *,
    model: str,
    plan: Path | None = None,
    trials: Spread[Trials] = Trials(),
    keep: Spread[Keep] = Keep(),
) -> dict[str, Any]:
    """Run a policy in episodes, with or without a plan, count its successes, and keep the roll-outs.

    Args:
        model: A policy: a directory or testbed:<name>.
        plan: Folder of a plan; the full policy without it.
        trials: The episodes.
        keep: What is kept of them.

    Returns:
        Success with its interval, network calls, seconds, and success by task.
    """
    from contextlib import nullcontext
    from functools import partial

    from noiseworks.bac.attaching import attach
    from noiseworks.bac.plan import CachePlan
    from noiseworks.kits.policies.replanning import DiffusionPolicy
    from noiseworks.kits.policies.verbs import run

    loaded = None if plan is None else CachePlan.from_pretrained(plan)
    host = _load(model, Place(trials.device))
    steps = None if loaded is None else loaded.num_steps
    with nullcontext() if loaded is None else attach(host, loaded):
        make = partial(DiffusionPolicy, host, num_inference_steps=steps)
        outcome = run(lambda n: make(num_envs=n), trials, needs="bac", **vars(keep))
    return outcome.summary() | {"plan": None if loaded is None else loaded.method}


def compare(
    *,
    model: str,
    profile: Path | None = None,
    schedule: Spread[Schedule] = Schedule(),
    checking: Spread[Checking] = Checking(),
    pictures: Spread[Pictures] = Pictures(),
    timing: Spread[Timing] = Timing(),
    place: Spread[Place] = Place(),
    out: Path | None = None,
) -> Any:
    """Time the full run, its baselines and the plans in turn, with the error of their actions or images.

    Args:
        model: A policy (a directory or testbed:<name>), or a DiT pipeline of diffusers.
        profile: Folder of a policy's profile; a pipeline is profiled on the way.
        schedule: Of the plans; its updates are also the steps of the arms with fewer steps.
        checking: On what a policy's errors are measured.
        pictures: What a pipeline draws.
        timing: How arms are timed.
        place: Where it runs.
        out: PNG or WebP file for the images of a pipeline, a row an arm.

    Returns:
        A table: milliseconds, times faster than the full run, network calls, peak memory in MiB beside the weights,
        share of computed blocks, mean squared error.
    """
    if out is not None:
        check_file(out, (".png", ".webp"))
    pipeline = (Path(resolve_model(model)) / "model_index.json").is_file()
    if not pipeline and (profile is None or out is not None):
        raise InputError("a policy needs its profile, named by --profile, and draws no images for --out")
    if timing.batch_size > checking.observations:
        raise InputError(
            f"batch_size must be at most the {checking.observations} observations, got {timing.batch_size}"
        )
    if pipeline:
        from diffusers import DiffusionPipeline
        from noiseworks.bac.pipelines import compare_pipeline
        from noiseworks.bac.tables import Comparison

        pipe = DiffusionPipeline.from_pretrained(resolve_model(model)).to(place.torch_device())
        return Comparison(compare_pipeline(pipe, schedule, pictures, timing.repeats, out))
    from noiseworks.bac.comparison import compare_policies
    from noiseworks.bac.profiling import FeatureProfile
    from noiseworks.bac.tables import Comparison

    measured = FeatureProfile.from_pretrained(profile)
    return Comparison(compare_policies(_load(model, place), measured, schedule, checking, timing))
