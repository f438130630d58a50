"""What `noiseworks-diffusiondrive` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any, get_args

from noiseworks.core.artifacts import check_folder, check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file, progress_bar
from noiseworks.diffusiondrive.options import (
    ANCHORS,
    Architecture,
    Denoising,
    Design,
    Fitting,
    SceneSet,
    Timing,
    architecture_of,
)


def train(
    *,
    out: Path,
    anchors: str | None = None,
    architecture: Spread[Architecture] = Architecture(),
    scenes: Spread[SceneSet] = SceneSet(scenes=4000),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a planner on scenes of the testbed `drive`, or of your own.

    Args:
        out: Folder of the run; the planner is its `model`. The same command goes on with a run that was stopped.
        anchors: Folder that the verb anchors wrote, or a .npy file [N, 8, 2] of metres; by default the means of
            clusters of the plans.
        architecture: Design and sizes.
        scenes: What it learns from.
        fitting: Length and bookkeeping.

    Returns:
        Where the planner is, and its steps.
    """
    check_writable(out)
    if scenes.data is None:
        check_enough(scenes.scenes, architecture, fitting)
    from noiseworks.diffusiondrive.data import read_anchors, scenes_of
    from noiseworks.diffusiondrive.training import fit_planner
    from noiseworks.kits.training import open_run

    centres = None if anchors is None else read_anchors(anchors)
    # The user's files are read before anything is written.
    given = None if scenes.data is None else scenes_of(scenes)
    if given is not None:
        check_enough(len(given[0]), architecture, fitting)
    settings = {"architecture": architecture, "anchors": anchors, "scenes": scenes, "fit": fitting}
    with open_run(out, settings) as run:
        with progress_bar("scenes") as show:
            _, table = given or scenes_of(scenes, show)
        made = fit_planner(table, architecture, fitting, run, anchors=centres)
        made.about |= {"scene_seed": scenes.scene_seed, "data": scenes.data, "commanded": scenes.commanded}
        made.save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def make(
    *,
    out: Path,
    width: Whole = 48,
    draws: Whole = 4,
    scenes: Spread[SceneSet] = SceneSet(scenes=4000),
    fitting: Spread[Fitting] = Fitting(max_steps=1200, batch_size=32, learning_rate=1.5e-3),
) -> dict[str, Any]:
    """Train all designs at once on one backbone, as the claim does.

    Args:
        out: Folder of the run and of the planners, one a design. The same command goes on with what was stopped.
        width: Channels of all of them.
        draws: Noisy plans of each scene that a step regresses.
        scenes: What they learn from.
        fitting: Length and bookkeeping.

    Returns:
        Where each planner is.
    """
    sizes = [architecture_of(design, width, draws) for design in get_args(Design)]
    check_writable(out)
    if scenes.data is None:
        check_enough(scenes.scenes, sizes[0], fitting)
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.training import fit_planners
    from noiseworks.kits.training import open_run

    with progress_bar("scenes") as show:
        labelled, table = scenes_of(scenes, show)
    check_enough(len(labelled), sizes[0], fitting)
    made = {}
    with open_run(out, {"width": width, "draws": draws, "scenes": scenes, "fit": fitting}) as run:
        for planner in fit_planners(table, sizes, fitting, run):
            design = planner.architecture.design
            planner.save_pretrained(out / design / "model")
            made[design] = str(out / design / "model")
    return made


def check_enough(count: int, architecture: Architecture, fitting: Fitting) -> None:
    """Refuse fewer scenes than anchors, or than a batch.

    Raises:
        InputError: Naming the numbers.
    """
    if count < max(architecture.modes, fitting.batch_size):
        raise InputError(
            f"{architecture.modes} anchors and batches of {fitting.batch_size} need at least as many scenes, got "
            f"{count}: raise scenes"
        )


def evaluate(
    *,
    model: str,
    scenes: Spread[SceneSet] = SceneSet(scene_seed=1),
    denoising: Spread[Denoising] = Denoising(),
    video: Path | None = None,
) -> dict[str, Any]:
    """Score a planner on scenes of the testbed `drive`, or of your own.

    Args:
        model: Folder of a planner.
        scenes: What it is judged on; seed 0 is what `train` learns from by default.
        denoising: How plans are denoised.
        video: Animated WebP file of six scenes, one after another: all modes, and the ego on the chosen one.

    Returns:
        PDM score and its terms, and beside them those of the expert, of constant velocity and of standing still.
    """
    if video is not None:
        check_file(video, (".webp",))
    from noiseworks.diffusiondrive.data import plan_all, scenes_of
    from noiseworks.diffusiondrive.evaluation import judge
    from noiseworks.diffusiondrive.pictures import film
    from noiseworks.diffusiondrive.planner import Planner
    from noiseworks.diffusiondrive.sanity import sanity

    planner = Planner.from_pretrained(model)
    with progress_bar("scenes") as show:
        labelled, table = scenes_of(scenes, show)
    plans = plan_all(planner, table, denoising)
    if video is not None:
        film(labelled, plans, video)
    return judge(plans, labelled).summary() | {"sanity": sanity(labelled)}


def anchors(
    *, out: Path, modes: Whole = 20, scenes: Spread[SceneSet] = SceneSet(scenes=4000)
) -> dict[str, Any]:
    """Write the means of clusters of the expert's plans, which `train` starts from.

    Args:
        out: Folder for the anchors [N, 8, 2], metres.
        modes: Anchors N.
        scenes: Whose plans.

    Returns:
        Where they are, and the end of each.
    """
    from noiseworks.core.checks import check_number

    check_number("modes", modes, low=2, high=256, integer=True)
    check_folder(out, ANCHORS)
    from noiseworks.core.artifacts import save_artifact
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.truncation import fit_anchors

    with progress_bar("scenes") as show:
        labelled, _ = scenes_of(scenes, show)
    found = fit_anchors(labelled.plans, modes)
    save_artifact(
        out, ANCHORS, {"scenes": scenes.scenes, "scene_seed": scenes.scene_seed}, {"anchors": found}
    )
    return {
        "anchors": str(out),
        "ends": [[round(value, 2) for value in end] for end in found[:, -1].tolist()],
    }


def bench(
    *, model: str, denoising: Spread[Denoising] = Denoising(), timing: Spread[Timing] = Timing()
) -> dict[str, Any]:
    """Time plans on this machine, alone and in a batch.

    Args:
        model: Folder of a planner.
        denoising: How plans are denoised.
        timing: Batches and turns.

    Returns:
        For each batch: milliseconds a scene, scenes a second, network calls, the backbone's share, and what a plan
        takes that computes the scene's part anew in each call.
    """
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.planner import Planner
    from noiseworks.diffusiondrive.timing import time_plans

    planner = Planner.from_pretrained(model)
    _, table = scenes_of(SceneSet(scenes=max(2, *timing.batches), scene_seed=1))
    return time_plans(planner, table, denoising, timing)


def scenes(*, out: Path, count: Whole = 4000, seed: Whole = 0, jobs: Whole | None = None) -> dict[str, Any]:
    """Write labelled scenes of the testbed `drive` as .npz files, which `train --data` and `eval --data` read.

    Args:
        out: Folder of the files. The same command goes on with those that are missing.
        count: Number of scenes.
        seed: Of the set.
        jobs: Processes; by default one a core.

    Returns:
        Where they are, how many were made now, and seconds.
    """
    import os
    import time

    from noiseworks.core.checks import check_number

    check_number("count", count, low=2, integer=True)
    check_number("seed", seed, low=0, integer=True)
    jobs = os.cpu_count() or 1 if jobs is None else jobs
    check_number("jobs", jobs, low=1, integer=True)
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"the output folder {out} is a file; name another folder")
    from noiseworks.diffusiondrive.data import write_folder

    begin = time.perf_counter()
    with progress_bar("scenes") as show:
        made = write_folder(out, seed, count, jobs, show)
    return {"scenes": str(out), "made": made, "of": count, "seconds": round(time.perf_counter() - begin, 2)}
