"""What `noiseworks-diffusiondrive` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_folder, check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file, progress_bar
from noiseworks.diffusiondrive.options import Architecture, Denoising, Fitting, SceneSet


def train(
    *,
    out: Path,
    architecture: Spread[Architecture] = Architecture(),
    scenes: Spread[SceneSet] = SceneSet(scenes=4000),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a planner on scenes of the testbed `drive`.

    Args:
        out: Folder of the run; the planner is its `model`. The same command goes on with a run that was stopped.
        architecture: Design and sizes.
        scenes: What it learns from.
        fitting: Length and bookkeeping.

    Returns:
        Where the planner is, and its steps.
    """
    check_writable(out)
    if scenes.scenes < max(architecture.modes, fitting.batch_size):
        raise InputError(
            f"{architecture.modes} anchors and batches of {fitting.batch_size} need at least as many scenes, got "
            f"{scenes.scenes}: raise scenes"
        )
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.training import fit_planner
    from noiseworks.kits.training import open_run

    settings = {"architecture": architecture, "scenes": scenes, "fit": fitting}
    with open_run(out, settings) as run:
        with progress_bar("scenes") as show:
            _, table = scenes_of(scenes, show)
        about = {"scenes": scenes.scenes, "scene_seed": scenes.scene_seed, "commanded": scenes.commanded}
        fit_planner(table, architecture, fitting, run, about=about).save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def evaluate(
    *,
    model: str,
    scenes: Spread[SceneSet] = SceneSet(scene_seed=1),
    denoising: Spread[Denoising] = Denoising(),
    video: Path | None = None,
) -> dict[str, Any]:
    """Score a planner on scenes of the testbed `drive`.

    Args:
        model: Folder of a planner.
        scenes: What it is judged on; seed 0 is what `train` learns from by default.
        denoising: How plans are denoised.
        video: Animated WebP file of twelve scenes, one after another, with all modes.

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
    kind = "diffusiondrive/anchors"
    check_folder(out, kind)
    from noiseworks.core.artifacts import save_artifact
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.truncation import fit_anchors

    with progress_bar("scenes") as show:
        labelled, _ = scenes_of(scenes, show)
    found = fit_anchors(labelled.plans, modes)
    save_artifact(out, kind, {"scenes": scenes.scenes, "scene_seed": scenes.scene_seed}, {"anchors": found})
    return {
        "anchors": str(out),
        "ends": [[round(value, 2) for value in end] for end in found[:, -1].tolist()],
    }
