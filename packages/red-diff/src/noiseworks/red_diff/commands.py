"""What `noiseworks-red-diff` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.core.output import progress_bar, results, write_rows
from noiseworks.red_diff.options import METHODS, Baselines, Choice, Degradation, Plan, Problem, RedDiff

CONFIG = "config.json"
RESTORED = FolderKind("red-diff/restored", ("*.png", CONFIG), CONFIG)
COMPARISON = FolderKind("red-diff/comparison", ("*.png", "comparison.csv", CONFIG), CONFIG)
NOT_IMAGES = ("fourier", "sensing", "phase")


def restore_image(
    *,
    problem: Spread[Problem],
    out: Path,
    choice: Spread[Choice] = Choice(),
    degradation: Spread[Degradation] = Degradation(),
    settings: Spread[RedDiff] = RedDiff(),
    baselines: Spread[Baselines] = Baselines(),
) -> dict[str, Any]:
    """Restore a degraded image of yours.

    Args:
        problem: Image (a clean one with --simulate) and model.
        out: Folder for `restored.png`, `images.png` (measured, restored, and the clean one) and `config.json`.
        choice: The method.
        degradation: What was done to the image.
        settings: Of RED-diff; every method takes its number of steps.
        baselines: Of the other methods.

    Returns:
        The folder, the root mean squared residual, seconds, and the PSNR with --simulate.
    """
    if degradation.task in NOT_IMAGES and not choice.simulate:
        raise InputError(
            f"the measurement of {degradation.task} is no image: use --simulate, or restore() in Python"
        )
    plan = Plan(choice.method, settings, baselines, degradation.sigma_y, choice.restarts)
    _check(problem, out, RESTORED, degradation)
    from noiseworks.kits.images import peak_signal_to_noise
    from noiseworks.kits.pictures import grid, to_pixels, write_picture
    from noiseworks.red_diff.diffusers import to_images
    from noiseworks.red_diff.restoring import restore
    from noiseworks.red_diff.tasks import open_task

    task = open_task(problem, degradation, simulate=choice.simulate)
    with progress_bar("restoring") as progress:
        found = restore(task.prior, task.operator, task.y, plan, seeds=[problem.seed], progress=progress)
    made = to_images(task.operator, found.images)
    shown = {"measured": task.shown, "restored": made}
    report = {"residual": float(found.residual), "seconds": found.seconds}
    if task.clean is not None:
        shown["clean"] = task.clean
        report["psnr"] = float(peak_signal_to_noise(task.clean, made))
    with results(
        out, RESTORED, {"problem": problem, "degradation": degradation, "plan": plan, **report}
    ) as folder:
        write_picture(to_pixels(made / 2 + 0.5)[0], folder / "restored.png")
        write_picture(
            grid({k: to_pixels(v / 2 + 0.5) for k, v in shown.items()}, scale=4), folder / "images.png"
        )
    return {"out": str(out), **report}


def compare_methods(
    *,
    problem: Spread[Problem],
    out: Path,
    degradation: Spread[Degradation] = Degradation(),
    settings: Spread[RedDiff] = RedDiff(),
    baselines: Spread[Baselines] = Baselines(),
) -> list[dict[str, Any]]:
    """Degrade clean images of yours and restore them with every method, at equal steps.

    Args:
        problem: Clean image, or a folder of them, and model.
        out: Folder for `comparison.csv`, `images.png` (a row a method) and `config.json`.
        degradation: What is done to the images.
        settings: Of RED-diff; its number of steps is that of all.
        baselines: Of the other methods.

    Returns:
        A row a method: PSNR, residual and milliseconds a step; methods that cannot take the task are left out.
    """
    plan = Plan("red-diff", settings, baselines, degradation.sigma_y)
    _check(problem, out, COMPARISON, degradation)
    from noiseworks.kits.pictures import grid, to_pixels, write_picture
    from noiseworks.red_diff.tasks import compare_all, open_task

    task = open_task(problem, degradation, simulate=True)
    with progress_bar("restoring") as progress:
        rows, shown = compare_all(task, METHODS, plan, problem.seed, progress)
    with results(out, COMPARISON, {"problem": problem, "degradation": degradation, "plan": plan}) as folder:
        write_rows(folder / "comparison.csv", rows)
        pixels = {name: to_pixels(images[:8] / 2 + 0.5) for name, images in shown.items()}
        write_picture(grid(pixels, scale=2), folder / "images.png")
    return rows


def _check(problem: Problem, out: Path, kind: FolderKind, degradation: Degradation) -> None:
    """Refuse what can be refused before torch is imported."""
    check_folder(out, kind, sources=(problem.model, problem.image, degradation.mask))
    if not problem.image.exists():
        raise InputError(f"no image at {problem.image}")
    resolve_model(problem.model)
