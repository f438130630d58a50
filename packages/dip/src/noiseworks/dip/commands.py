"""What `noiseworks-dip` runs: each verb is one of these functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file, progress_bar, write_json
from noiseworks.dip.options import Architecture, CaseSet, Clipset, Fitting, Moving, Place, Sampling


def train(
    *,
    out: Path,
    model: str | None = None,
    architecture: Spread[Architecture] = Architecture(),
    clipset: Spread[Clipset] = Clipset(),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a motion model, or a control branch on one.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        model: Folder of a base model that gets a control branch: the second stage. Without it, the first.
        architecture: Sizes, of the first stage.
        clipset: What it learns from.
        fitting: Length, rate and bookkeeping.

    Returns:
        Where the model is, and its steps.
    """
    check_writable(out)
    if clipset.data is None and clipset.clips < fitting.batch_size:
        raise InputError(f"{clipset.clips} clips are fewer than a batch of {fitting.batch_size}: raise clips")
    from noiseworks.dip.data import clips_of
    from noiseworks.dip.network import MotionModel
    from noiseworks.dip.training import check_clips, fit_motion
    from noiseworks.kits.training import open_run

    start = architecture if model is None else MotionModel.from_pretrained(model)
    clips = clips_of(clipset)
    check_clips(clips, fitting)
    settings = {"architecture": architecture, "model": model, "clips": clipset, "fit": fitting}
    with open_run(out, settings) as run:
        made = fit_motion(clips, start, fitting, run)
        made.about |= {"kinds": clipset.kinds, "clips": len(clips["motion"])}
        made.save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def make(
    *,
    out: Path,
    branch_steps: Whole = 2500,
    architecture: Spread[Architecture] = Architecture(),
    clipset: Spread[Clipset] = Clipset(kinds="walk,sit"),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train both stages one after the other; with the defaults on a CPU, the model that this package ships.

    Args:
        out: Folder of the two runs, `base` and `control`. The same command goes on with what was stopped.
        branch_steps: Optimiser steps of the control branch.
        architecture: Sizes.
        clipset: What it learns from.
        fitting: Length of the first stage, rate and bookkeeping of both.

    Returns:
        Where the model is, and its steps.
    """
    second = replace(fitting, max_steps=branch_steps)
    base = train(out=out / "base", architecture=architecture, clipset=clipset, fitting=fitting)
    return train(out=out / "control", model=base["model"], clipset=clipset, fitting=second)


def plan(
    *,
    scene: Path,
    start: tuple[float, float],
    goal: tuple[float, float],
    out: Path,
    clearance: float = 0.3,
) -> dict[str, Any]:
    """Find a way over a scene's floor.

    Args:
        scene: A room (.json), a grid of distances (.npz) or a closed mesh (.obj).
        start: x and y, metres.
        goal: x and y, metres.
        out: JSON file of the plan, which `generate` reads; waypoints with the actions sit and lie may be added.
        clearance: Metres that the way keeps from furniture and walls.

    Returns:
        Where the plan is, its waypoints and its length.
    """
    from noiseworks.core.checks import check_number

    check_file(out, (".json",))
    check_number("clearance", clearance, low=0)
    from noiseworks.kits.motion import find_path, load_scene
    from noiseworks.kits.motion.scenes import length_of

    path = find_path(load_scene(scene), start, goal, clearance=clearance)
    points = [{"place": [*map(float, point), 0.0], "action": "walk"} for point in path[1:]]
    write_json(out, {"start": list(start), "waypoints": points})
    return {"plan": str(out), "waypoints": len(points), "metres": round(length_of(path), 3)}


def generate(
    *,
    model: str,
    out: Path,
    place: Spread[Place] = Place(),
    sampling: Spread[Sampling] = Sampling(),
    moving: Spread[Moving] = Moving(),
    case_set: Spread[CaseSet] = CaseSet(cases=2),
) -> dict[str, Any]:
    """Generate motions in a scene: numbers (.npz, .bvh) and films (.webp).

    Args:
        model: Folder of a model with a control branch.
        out: Folder of the motions; those that it has already are kept.
        place: A scene of your own, and a plan for it.
        sampling: How rounds are denoised.
        moving: How plans become rounds.
        case_set: Which cases, and how many motions of each.

    Returns:
        For each motion its file, frames, rounds and whether its plan was done.
    """
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"the output folder {out} is a file; name another folder")
    from noiseworks.dip.generation import generate_motions

    with progress_bar("motions") as show:
        return generate_motions(model, out, place, (sampling, moving, case_set), show)


def evaluate(
    *,
    model: str,
    video: Path | None = None,
    sampling: Spread[Sampling] = Sampling(),
    moving: Spread[Moving] = Moving(),
    case_set: Spread[CaseSet] = CaseSet(),
) -> dict[str, Any]:
    """Evaluate motions on cases of the testbed `motion`.

    Args:
        model: Folder of a model with a control branch.
        video: Animated WebP file of the first four motions.
        sampling: How rounds are denoised.
        moving: How plans become rounds.
        case_set: Which cases, and how many motions of each.

    Returns:
        Means of success, distance, penetration, contact and the rest over all motions; and over the
        best of each case, where it has several.
    """
    if video is not None:
        check_file(video, (".webp",))
    from noiseworks.dip.generation import evaluate_way

    with progress_bar("motions") as show:
        return evaluate_way(model, (sampling, moving, case_set), video, show)


def compare(
    *,
    model: str,
    video: Path | None = None,
    sampling: Spread[Sampling] = Sampling(steps=25),
    moving: Spread[Moving] = Moving(),
    case_set: Spread[CaseSet] = CaseSet(cases=4),
) -> dict[str, Any]:
    """Compare DIP with inpainting, control alone, the policy alone, direct guidance, and rounds that are not blended.

    Args:
        model: Folder of a model with a control branch.
        video: Animated WebP file of the first case in all ways.
        sampling: How rounds are denoised.
        moving: How plans become rounds.
        case_set: Which cases, and how many motions of each.

    Returns:
        For each way: the figures of `eval`, and seconds of work a motion.
    """
    if video is not None:
        check_file(video, (".webp",))
    from noiseworks.dip.generation import compare_ways

    with progress_bar("ways") as show:
        return compare_ways(model, (sampling, replace(moving, blend=True), case_set), video, show)
