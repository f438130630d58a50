"""What `noiseworks-diffusionguard` runs: each verb is one of these functions.

It is a defence by the owner of a picture; best effort, not a guarantee.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Spread, Whole, at_least
from noiseworks.core.output import check_file, results, write_rows
from noiseworks.diffusionguard.options import Editing, Guard, Strength, parse_methods

EVALUATION = FolderKind("diffusionguard/evaluation", ("*.csv", "*.png", "config.json"), "config.json")
COMPARISON = FolderKind("diffusionguard/comparison", ("*.csv", "*.png", "config.json"), "config.json")
FAMILIES = ("sd", "sdxl")
White = Literal["keep", "repaint"]


def protect(
    *,
    model: str,
    images: Path,
    out: Path,
    masks: Path | None = None,
    white: White = "keep",
    prompt: str = "",
    side: Annotated[Whole, at_least(16)] = 512,
    strength: Spread[Strength] = Strength(),
    guard: Spread[Guard] = Guard(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Protect pictures against inpainting; the same command goes on after a stop.

    Args:
        model: An inpainting pipeline: a directory, a hub id or testbed:<name>.
        images: A picture, or a folder of pictures.
        out: Folder for the protected pictures (PNG), `metrics.csv` and `before_after.png`.
        masks: A mask, or a folder with one a picture of the same name; without any whole pictures are kept.
        white: Whether white in a mask is what editors keep or what they repaint.
        prompt: What the editor is asked for in the protection's own passes; the paper leaves it empty.
        side: Largest side at which the change is computed; that of larger pictures is enlarged.
        strength: How far pictures may be changed.
        guard: Objective and masks.
        hardware: Where the model runs.

    Returns:
        The folder, the number of pictures, and means of how visible the change is.
    """
    from noiseworks.kits.training.folder import check_run

    settings = {
        "model": model,
        "images": images,
        "masks": masks,
        "white": white,
        "prompt": prompt,
        "side": side,
    }
    settings |= {"strength": strength, "guard": guard}
    check_run(out, settings)
    jobs, _ = _jobs(images, masks, white), resolve_model(model)
    from noiseworks.diffusionguard.early_stage import check_inpaints
    from noiseworks.diffusionguard.evaluation import load_editor, protector
    from noiseworks.kits.protection.hosts import host_of
    from noiseworks.kits.protection.running import protect_files

    with host_of(load_editor(model, hardware, FAMILIES), prompt) as host:
        check_inpaints(host)
        run = protector("diffusionguard", host, strength, guard)
        rows = protect_files(jobs, out, settings, run, strength, factor=host.factor, side=side)
    names = ("largest_255", "psnr", "ssim")
    return {"out": str(out), "pictures": len(rows)} | {n: sum(r[n] for r in rows) / len(rows) for n in names}


def mask(
    *,
    mask: Path,
    out: Path,
    white: White = "keep",
    count: Annotated[Whole, at_least(1)] = 8,
    seed: Annotated[Whole, at_least(0)] = 0,
    guard: Spread[Guard] = Guard(),
) -> dict[str, Any]:
    """Show the shrunk masks that a protection is averaged over.

    Args:
        mask: The mask's file.
        out: Picture to write, the given mask first.
        white: Whether white is what editors keep or what they repaint.
        count: Masks to draw.
        seed: Of the draws.
        guard: How masks are shrunk.

    Returns:
        The picture, and the share of the kept region that each shrunk one has.
    """
    check_file(out, (".png", ".webp"), sources=(mask,))
    from noiseworks.kits.protection.files import read_mask, read_picture

    keep = read_mask(mask, read_picture(mask).pixels.shape[:2], white)
    import numpy as np
    from noiseworks.diffusionguard.contours import ContourShrink
    from noiseworks.kits.pictures import strip, write_picture

    shrunk = ContourShrink(guard.strength, guard.iterations, guard.smoothness).sample(keep, count, seed)
    shown = np.stack([keep, *shrunk])[..., None].repeat(3, axis=-1).astype(np.uint8) * 255
    write_picture(strip(shown), out)
    return {"out": str(out), "shares": [float(one.sum() / keep.sum()) for one in shrunk]}


def evaluate(
    *,
    model: str,
    images: Path,
    protected: Path,
    masks: Path,
    out: Path,
    white: White = "keep",
    editing: Spread[Editing] = Editing(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Edit originals and protected pictures from the same noise, the latter after each purifier too.

    Args:
        model: The editor, an inpainting pipeline; another one than that protected against shows how it transfers.
        images: The originals, a picture or a folder.
        protected: The folder that `protect` wrote.
        masks: Masks that the editor draws: a mask, or a folder with one a picture of the same name.
        out: Folder for `edits.csv`, `table.csv` and `edits.png`.
        white: Whether white in a mask is what editors keep or what they repaint.
        editing: How pictures are edited.
        hardware: Where the model runs.

    Returns:
        The folder and a row a purifier; a lower PSNR between the two edits is a stronger protection.
    """
    check_folder(out, EVALUATION, sources=(images, protected, masks))
    jobs, _ = _jobs(images, masks, white), resolve_model(model)
    from noiseworks.kits.protection.purifiers import check_purifiers

    check_purifiers(editing.chosen)
    from noiseworks.diffusionguard.evaluation import assess_pictures, load_editor
    from noiseworks.kits.protection.files import read_picture

    changed = [read_picture(protected / f"{job.path.stem}.png") for job in jobs]
    found = assess_pictures(load_editor(model, hardware, FAMILIES), jobs, changed, editing)
    with results(out, EVALUATION, {"model": model, "images": images, "editing": editing}) as folder:
        _write(folder, found)
    return {"out": str(out), "table": found.table}


def compare(
    *,
    model: str,
    images: Path,
    masks: Path,
    out: Path,
    methods: str = "random,photoguard,advdm,diffusionguard",
    transfer: str | None = None,
    white: White = "keep",
    strength: Spread[Strength] = Strength(),
    guard: Spread[Guard] = Guard(),
    editing: Spread[Editing] = Editing(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Protect pictures by several defences at one budget, edit all of them, and compare.

    Args:
        model: An inpainting pipeline: a directory, a hub id or testbed:<name>.
        images: A picture, or a folder of pictures of one size.
        masks: A mask, or a folder with one a picture of the same name.
        out: Folder for `comparison.csv`, `<method>.png` and, with another editor, `<method>-transfer.png`.
        methods: Defences with commas between: diffusionguard, no-augmentation, random, photoguard,
            photoguard-diffusion, advdm, mist, sds, sdst.
        transfer: Another inpainting pipeline that edits the protected pictures too, without being known to them.
        white: Whether white in a mask is what editors keep or what they repaint.
        strength: How far pictures may be changed, for all defences.
        guard: Objective and masks of DiffusionGuard.
        editing: How pictures are edited.
        hardware: Where the model runs.

    Returns:
        The folder and a row a method, editor and purifier: cost, visibility, distances of the edits.
    """
    names = parse_methods(methods)
    check_folder(out, COMPARISON, sources=(images, masks))
    models = list(dict.fromkeys([model] if transfer is None else [model, transfer]))
    jobs, _ = _jobs(images, masks, white), [resolve_model(one) for one in models]
    from noiseworks.kits.protection.purifiers import check_purifiers

    check_purifiers(editing.chosen)
    from noiseworks.diffusionguard.evaluation import compare_defences, load_editor
    from noiseworks.kits.pictures import write_picture

    editors = {one: load_editor(one, hardware, FAMILIES) for one in models}
    rows, pictures = compare_defences(editors, jobs, names, strength, guard, editing)
    settings = {"model": model, "transfer": transfer, "images": images}
    settings |= {"strength": strength, "guard": guard, "editing": editing}
    with results(out, COMPARISON, settings) as folder:
        write_rows(folder / "comparison.csv", rows)
        for name, picture in pictures.items():
            write_picture(picture, folder / f"{name}.png")
    return {"out": str(out), "rows": rows}


def _write(folder: Path, found: Any) -> None:
    from noiseworks.kits.pictures import write_picture

    write_rows(folder / "edits.csv", found.rows)
    write_rows(folder / "table.csv", found.table)
    write_picture(found.picture, folder / "edits.png")


def _jobs(images: Path, masks: Path | None, white: White) -> list[Any]:
    from noiseworks.kits.protection.running import jobs_of

    return jobs_of(images, masks, white)
