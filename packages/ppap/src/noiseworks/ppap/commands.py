"""What `noiseworks-ppap` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.core.output import progress_bar, results, write_rows
from noiseworks.kits.training import check_run, open_run
from noiseworks.ppap.options import Adapters, Drawing, Guided, Strength, Synthesis, Transfer, Wanted

CONFIG = "config.json"
EXPERTS = "ppap/experts"
DATA = FolderKind("ppap/data", ("*.png", CONFIG), CONFIG)
IMAGES = FolderKind("ppap/images", ("*.png", CONFIG), CONFIG)
COMPARISON = FolderKind("ppap/comparison", ("*.png", "comparison.csv", CONFIG), CONFIG)


def generate_data(
    *, drawing: Spread[Drawing], out: Path, synthesis: Spread[Synthesis] = Synthesis()
) -> dict[str, Any]:
    """Let the diffusion model make the images for the transfer; no data are needed.

    Args:
        drawing: The model, and how it draws.
        out: Folder for the images and `config.json`.
        synthesis: How many.

    Returns:
        The folder and the number of images.
    """
    check_folder(out, DATA, sources=(drawing.model,))
    resolve_model(drawing.model)
    from noiseworks.kits.pictures import write_picture
    from noiseworks.ppap.diffusers import conditions_of, draw_images
    from noiseworks.ppap.reports import load_host, picture_of, seeds_of

    pipe = load_host(drawing)
    conditions_of(pipe, drawing.prompt, 1)
    with (
        results(out, DATA, {"drawing": drawing, "synthesis": synthesis}) as folder,
        progress_bar("drawing") as bar,
    ):
        for first in range(0, synthesis.images, synthesis.batch):
            count = min(synthesis.batch, synthesis.images - first)
            made = draw_images(pipe, seeds_of(drawing.seed, first, count), drawing.steps, drawing.prompt)
            for i, pixels in enumerate(picture_of(made)):
                write_picture(pixels, folder / f"{first + i:06d}.png")
            bar(first + count, synthesis.images)
    return {"out": str(out), "images": synthesis.images}


def train(
    *,
    model: str,
    data: Path,
    out: Path,
    guided: Spread[Guided],
    adapters: Spread[Adapters] = Adapters(),
    transfer: Spread[Transfer] = Transfer(),
) -> dict[str, Any]:
    """Train a guide's experts for noisy images; the same command goes on with a stopped run.

    Args:
        model: The diffusion model: a directory, a hub id or testbed:<name>.
        data: Folder of images, from generate-data or your own.
        out: Folder for config.json, metrics.csv, checkpoints and `experts`.
        guided: The guide.
        adapters: The experts.
        transfer: How they learn.

    Returns:
        The experts' folder, their number and trained parameters.
    """
    settings = {"model": model, "data": data, "guided": guided, "adapters": adapters, "transfer": transfer}
    check_run(out, settings)
    check_folder(out / "experts", EXPERTS)
    for one in (model, guided.guide):
        resolve_model(one)
    from noiseworks.ppap.diffusers import channels_of
    from noiseworks.ppap.reports import guide_of, load_host
    from noiseworks.ppap.saving import read_folder, save_experts
    from noiseworks.ppap.transferring import prepared

    drawing = Drawing(model=model, device=transfer.device)
    pipe = load_host(drawing)
    images = read_folder(data, channels_of(pipe))
    guide = guide_of(guided, drawing.torch_device())
    training = prepared(pipe, guide, images, adapters, transfer)
    with open_run(out, settings) as run:
        experts = training.train(run)
        save_experts(experts, out / "experts")
    trained = sum(one.numel() for one in experts.parts[0].parameters())
    return {"out": str(out / "experts"), "experts": len(experts.parts), "parameters_each": trained}


def make(
    *,
    drawing: Spread[Drawing],
    guided: Spread[Guided],
    wanted: Spread[Wanted] = Wanted("0"),
    out: Path,
    experts: Path | None = None,
    strength: Spread[Strength] = Strength(),
) -> dict[str, Any]:
    """Draw guided images.

    Args:
        drawing: The model, and how it draws.
        guided: The guide.
        wanted: What it shall see.
        out: Folder for the images and `config.json`.
        experts: Its experts, from train; without them the guide looks at noise as it is.
        strength: How hard.

    Returns:
        The folder, and how well the guide finds what was wanted in the images.
    """
    _check(drawing, out, IMAGES, wanted, guided.guide)
    from noiseworks.kits.pictures import write_picture
    from noiseworks.ppap.reports import drawn, likelihood, opened, picture_of

    host = opened(drawing, guided, experts)
    made = drawn(host, host.reader, wanted, drawing, strength)
    found = likelihood(host, made, wanted)
    with results(out, IMAGES, {"drawing": drawing, "wanted": wanted, "strength": strength}) as folder:
        for i, pixels in enumerate(picture_of(made)):
            write_picture(pixels, folder / f"{i:04d}.png")
    return {"out": str(out), **found}


def compare(
    *,
    drawing: Spread[Drawing],
    guided: Spread[Guided],
    wanted: Spread[Wanted] = Wanted("0"),
    out: Path,
    experts: Path,
    judge: str | None = None,
    strength: Spread[Strength] = Strength(),
) -> list[dict[str, Any]]:
    """Draw with experts, with the guide as it is, and unguided, from the same noise.

    Args:
        drawing: The model, and how it draws.
        guided: The guide.
        wanted: What it shall see.
        out: Folder for `comparison.csv`, `images.png` (a row of images a method) and `config.json`.
        experts: Its experts.
        judge: Another guide of the same outputs that judges the images; by default the guide itself, which favours
            itself.
        strength: How hard.

    Returns:
        A row a method: how well the judge finds what was wanted, and seconds an image.
    """
    _check(drawing, out, COMPARISON, wanted, guided.guide, *([] if judge is None else [judge]))
    from noiseworks.kits.pictures import grid, write_picture
    from noiseworks.ppap.reports import compared, opened, picture_of

    host = opened(drawing, guided, experts, judge)
    rows, shown = compared(host, wanted, drawing, strength)
    settings = {"drawing": drawing, "wanted": wanted, "strength": strength, "judge": judge}
    with results(out, COMPARISON, settings) as folder:
        write_rows(folder / "comparison.csv", rows)
        pixels = {name: picture_of(images[:8]) for name, images in shown.items()}
        side = next(iter(shown.values())).shape[-1]
        write_picture(grid(pixels, scale=max(1, 64 // side)), folder / "images.png")
    return rows


def _check(drawing: Drawing, out: Path, kind: FolderKind, wanted: Wanted, *guides: str | Path) -> None:
    """Refuse what can be refused before torch is imported."""
    check_folder(out, kind, sources=(drawing.model, wanted.map))
    for one in (drawing.model, *guides):
        resolve_model(one)
    if wanted.map is not None and not wanted.map.is_file():
        raise InputError(f"no map at {wanted.map}")
