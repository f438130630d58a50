"""What `noiseworks-red-diff` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Seed, Spread, at_least
from noiseworks.core.output import progress_bar, results, write_rows
from noiseworks.red_diff.options import METHODS, Baselines, Degradation, Method, RedDiff

CONFIG = "config.json"
RESTORED = FolderKind("red-diff/restored", ("*.png", CONFIG), CONFIG)
COMPARISON = FolderKind("red-diff/comparison", ("*.png", "comparison.csv", CONFIG), CONFIG)
NOT_IMAGES = ("fourier", "sensing", "phase")


def restore_image(
    *,
    model: str,
    image: Path,
    out: Path,
    simulate: bool = False,
    method: Method = "red-diff",
    prompt: str = "",
    seed: Seed = 0,
    restarts: Annotated[int, at_least(1)] = 1,
    degradation: Spread[Degradation] = Degradation(),
    settings: Spread[RedDiff] = RedDiff(),
    baselines: Spread[Baselines] = Baselines(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Restore a degraded image of yours.

    Args:
        model: A DDPM, DDIM or Stable Diffusion pipeline: a directory, a hub id or testbed:<name>.
        image: The degraded image; a clean one with --simulate.
        out: Folder for `restored.png`, `images.png` (measured, restored, and the clean one) and `config.json`.
        simulate: Degrade the image first and report how near the restored one comes to it.
        method: red-diff, dps, pigdm, ddrm, or start (what the operator alone gives).
        prompt: What the image shows, for Stable Diffusion.
        seed: Of the noise.
        restarts: Runs, of which the one that explains the measurements best is kept.
        degradation: What was done to the image.
        settings: Of RED-diff.
        baselines: Of the other methods.
        hardware: Where the model runs.

    Returns:
        The folder, the root mean squared residual, seconds, and the PSNR with --simulate.
    """
    if degradation.task in NOT_IMAGES and not simulate:
        raise InputError(
            f"the measurement of {degradation.task} is no image: use --simulate, or restore() in Python"
        )
    _check(model, image, out, RESTORED, degradation)
    from noiseworks.kits.images import peak_signal_to_noise
    from noiseworks.kits.pictures import grid, to_pixels, write_picture
    from noiseworks.red_diff.diffusers import to_images
    from noiseworks.red_diff.restoring import best_of
    from noiseworks.red_diff.tasks import open_task

    task = open_task(model, image, degradation, hardware, prompt=prompt, simulate=simulate, seed=seed)
    with progress_bar("restoring") as progress:
        found = best_of(
            restarts,
            task.prior,
            task.operator,
            task.y,
            method,
            seeds=[seed],
            settings=settings,
            baselines=baselines,
            sigma_y=degradation.sigma_y,
            progress=progress,
        )
    made = to_images(task.operator, found.images)
    shown = {"measured": task.shown, "restored": made} | ({"clean": task.clean} if simulate else {})
    report = {"residual": float(found.residual), "seconds": found.seconds}
    if simulate:
        report["psnr"] = float(peak_signal_to_noise(task.clean, made))
    groups = {"degradation": degradation, "settings": settings, "baselines": baselines}
    with results(
        out, RESTORED, {"model": model, "method": method, "seed": seed, **groups, **report}
    ) as folder:
        write_picture(to_pixels(made / 2 + 0.5)[0], folder / "restored.png")
        write_picture(
            grid({k: to_pixels(v / 2 + 0.5) for k, v in shown.items()}, scale=4), folder / "images.png"
        )
    return {"out": str(out), **report}


def compare_methods(
    *,
    model: str,
    image: Path,
    out: Path,
    prompt: str = "",
    seed: Seed = 0,
    degradation: Spread[Degradation] = Degradation(),
    settings: Spread[RedDiff] = RedDiff(),
    baselines: Spread[Baselines] = Baselines(),
    hardware: Spread[Hardware] = Hardware(),
) -> list[dict[str, Any]]:
    """Degrade clean images of yours and restore them with every method, at equal steps.

    Args:
        model: As in restore.
        image: A clean image, or a folder of them.
        out: Folder for `comparison.csv`, `images.png` (a row a method) and `config.json`.
        prompt: What the images show, for Stable Diffusion.
        seed: Of the noise; image i has seed + i.
        degradation: What is done to the images.
        settings: Of RED-diff; its number of steps is that of all.
        baselines: Of the other methods.
        hardware: Where the model runs.

    Returns:
        A row a method: PSNR, residual and milliseconds a step; methods that cannot take the task are left out.
    """
    _check(model, image, out, COMPARISON, degradation)
    from noiseworks.kits.pictures import grid, to_pixels, write_picture
    from noiseworks.red_diff.tasks import compare_all, open_task

    task = open_task(model, image, degradation, hardware, prompt=prompt, simulate=True, seed=seed)
    with progress_bar("restoring") as progress:
        rows, shown = compare_all(task, METHODS, settings, baselines, degradation.sigma_y, seed, progress)
    groups = {"degradation": degradation, "settings": settings, "baselines": baselines}
    with results(out, COMPARISON, {"model": model, "seed": seed, **groups}) as folder:
        write_rows(folder / "comparison.csv", rows)
        pixels = {name: to_pixels(images[:8] / 2 + 0.5) for name, images in shown.items()}
        write_picture(grid(pixels, scale=2), folder / "images.png")
    return rows


def _check(model: str, image: Path, out: Path, kind: FolderKind, degradation: Degradation) -> None:
    """Refuse what can be refused before torch is imported."""
    check_folder(out, kind, sources=(model, image, degradation.mask))
    if not image.exists():
        raise InputError(f"no image at {image}")
    resolve_model(model)
