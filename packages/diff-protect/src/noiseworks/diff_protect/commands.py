"""What `noiseworks-diff-protect` runs: each verb is one of these functions.

It is a defence by the owner of a picture; best effort, not a guarantee.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Spread, Whole, at_least
from noiseworks.core.output import check_file, results, write_json, write_rows
from noiseworks.diff_protect.options import Editing, Method, parse_methods
from noiseworks.kits.protection.options import Budget

EVALUATION = FolderKind("diff-protect/evaluation", ("*.csv", "*.png", "config.json"), "config.json")
COMPARISON = FolderKind("diff-protect/comparison", ("*.csv", "*.png", "config.json"), "config.json")
FAMILIES = ("sd", "sdxl")
Side = Annotated[Whole, at_least(16)]


def protect(
    *,
    model: str,
    images: Path,
    out: Path,
    side: Side = 512,
    method: Spread[Method] = Method(),
    budget: Spread[Budget] = Budget(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Protect pictures against imitation and editing; the same command goes on after a stop.

    Args:
        model: A Stable Diffusion or SDXL pipeline: a directory, a hub id or testbed:<name>.
        images: A picture, or a folder of pictures.
        out: Folder for the protected pictures (PNG), `metrics.csv` and `before_after.png`.
        side: Largest side at which the change is computed; that of larger pictures is enlarged.
        method: Which protection.
        budget: How far pictures may be changed.
        hardware: Where the model runs.

    Returns:
        The folder, the number of pictures, and means of how visible the change is.
    """
    from noiseworks.kits.training.folder import check_run

    settings = {"model": model, "images": images, "side": side, "method": method, "budget": budget}
    check_run(out, settings)
    from noiseworks.kits.protection.running import jobs_of

    jobs, _ = jobs_of(images), resolve_model(model)
    from noiseworks.diff_protect.evaluation import load, protector
    from noiseworks.kits.protection.hosts import host_of
    from noiseworks.kits.protection.running import protect_files

    pipe = load(model, hardware, FAMILIES)
    with host_of(pipe, method.prompt) as host:
        run = protector(host, method, budget)
        # The latent attack has no bound in pixels: its pictures are only rounded.
        whole = budget if method.method != "sds-z" else _unbounded(budget)
        rows = protect_files(jobs, out, settings, run, whole, factor=host.factor, side=side)
    names = ("largest_255", "psnr", "ssim")
    return {"out": str(out), "pictures": len(rows)} | {n: sum(r[n] for r in rows) / len(rows) for n in names}


def evaluate(
    *,
    model: str,
    images: Path,
    protected: Path,
    out: Path,
    editing: Spread[Editing] = Editing(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Edit originals and protected pictures by SDEdit from the same noise, the latter after each purifier too.

    Args:
        model: The editor; another model than that protected against shows how a protection transfers.
        images: The originals, a picture or a folder.
        protected: The folder that `protect` wrote.
        out: Folder for `edits.csv`, `table.csv` and a picture for each strength.
        editing: How pictures are edited.
        hardware: Where the model runs.

    Returns:
        The folder and a row a strength and purifier; a lower PSNR between the two edits is a stronger protection.
    """
    check_folder(out, EVALUATION, sources=(images, protected))
    from noiseworks.kits.protection.purifiers import check_purifiers
    from noiseworks.kits.protection.running import jobs_of

    jobs, _ = jobs_of(images), resolve_model(model)
    check_purifiers(editing.chosen)
    from noiseworks.diff_protect.evaluation import assess_pictures, load
    from noiseworks.kits.pictures import write_picture
    from noiseworks.kits.protection.files import read_picture

    changed = [read_picture(protected / f"{job.path.stem}.png") for job in jobs]
    found = assess_pictures(load(model, hardware, FAMILIES), jobs, changed, editing)
    with results(out, EVALUATION, {"model": model, "images": images, "editing": editing}) as folder:
        write_rows(
            folder / "edits.csv", [{"strength": s, **row} for s, one in found.items() for row in one.rows]
        )
        table = [{"strength": s, **row} for s, one in found.items() for row in one.table]
        write_rows(folder / "table.csv", table)
        for strength, one in found.items():
            write_picture(one.picture, folder / f"strength-{strength:g}.png")
    return {"out": str(out), "table": table}


def compare(
    *,
    model: str,
    images: Path,
    out: Path,
    methods: str = "random,photoguard,advdm+,sds+,sds-",
    transfer: str | None = None,
    prompt: str = "a photo",
    budget: Spread[Budget] = Budget(),
    editing: Spread[Editing] = Editing(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Protect pictures by several methods at one budget, edit all of them, and compare.

    Args:
        model: A Stable Diffusion or SDXL pipeline: a directory, a hub id or testbed:<name>.
        images: A picture, or a folder of pictures of one size.
        out: Folder for `comparison.csv`, `<method>.png` and, with another editor, `<method>-transfer.png`.
        methods: Methods of `protect --method`, commas between.
        transfer: Another pipeline that edits the protected pictures too, without being known to them.
        prompt: A short caption of the pictures.
        budget: How far pictures may be changed, for all methods.
        editing: How pictures are edited.
        hardware: Where the model runs.

    Returns:
        The folder and a row a method, editor, strength and purifier: cost, visibility, distances of the edits.
    """
    names = parse_methods(methods)
    check_folder(out, COMPARISON, sources=(images,))
    from noiseworks.kits.protection.purifiers import check_purifiers
    from noiseworks.kits.protection.running import jobs_of

    models = list(dict.fromkeys([model] if transfer is None else [model, transfer]))
    jobs, _ = jobs_of(images), [resolve_model(one) for one in models]
    check_purifiers(editing.chosen)
    from noiseworks.diff_protect.evaluation import compare_methods, load
    from noiseworks.kits.pictures import write_picture

    chosen = [Method(method=name, prompt=prompt) for name in names]
    editors = {one: load(one, hardware, FAMILIES) for one in models}
    rows, pictures = compare_methods(editors, jobs, chosen, budget, editing)
    settings = {"model": model, "transfer": transfer, "images": images, "budget": budget, "editing": editing}
    with results(out, COMPARISON, settings) as folder:
        write_rows(folder / "comparison.csv", rows)
        for name, picture in pictures.items():
            write_picture(picture, folder / f"{name}.png")
    return {"out": str(out), "rows": rows}


def analyse(
    *,
    model: str,
    images: Path,
    out: Path | None = None,
    prompt: str = "a photo",
    budget: Spread[Budget] = Budget(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Measure why the encoder is the weak point: latent shifts, amplification, agreement of gradients.

    Args:
        model: A Stable Diffusion or SDXL pipeline: a directory, a hub id or testbed:<name>.
        images: A picture, or a folder of pictures of one size.
        out: File for the result as JSON.
        prompt: A short caption of the pictures.
        budget: Of the attacks.
        hardware: Where the model runs.

    Returns:
        The measurements, by name.
    """
    if out is not None:
        check_file(out, (".json",))
    from noiseworks.kits.protection.running import jobs_of

    jobs, _ = jobs_of(images), resolve_model(model)
    from noiseworks.diff_protect.bottleneck import analyse_bottleneck
    from noiseworks.diff_protect.evaluation import load
    from noiseworks.kits.protection.files import to_tensor
    from noiseworks.kits.protection.hosts import host_of
    from noiseworks.kits.protection.running import stacked

    pipe = load(model, hardware, FAMILIES)
    with host_of(pipe, prompt) as host:
        pixels = stacked([job.picture for job in jobs], host.factor)
        found = asdict(analyse_bottleneck(host, to_tensor(pixels).to(pipe.device), budget))
    if out is not None:
        write_json(out, found)
    return found


def _unbounded(budget: Budget) -> Budget:
    return Budget(128, budget.step_255, budget.steps, "l2", seed=budget.seed)
