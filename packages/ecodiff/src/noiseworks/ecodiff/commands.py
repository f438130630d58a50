"""What `noiseworks-ecodiff` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import HOST_FOLDER, FolderKind, atomic_directory, check_folder
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.ecodiff.options import Contest, Cut, Learning, Ranking, Recovery, Sampling, Where
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware, read_prompts

CONFIG = "config.yaml"
COMPARISON = FolderKind("ecodiff/comparison", ("comparison.csv", "images.png", CONFIG), CONFIG)


def fit(
    *,
    drawing: Spread[Drawing],
    out: Path,
    where: Spread[Where] = Where(),
    learning: Spread[Learning] = Learning(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Learn which heads and neurons a pipeline can do without; the same command goes on with a stopped run.

    Args:
        drawing: The pipeline, and the calibration prompts.
        out: Folder of the run; the masks are in `masks` inside of it.
        where: Which units may go.
        learning: How the masks are learned.
        sampling: The sampler that the objective runs through.
        hardware: Where the model runs.

    Returns:
        The folder of the masks, updates, and the share of each family whose logit is at most 0.
    """
    texts, settings = (
        read_prompts(drawing.prompts),
        {"where": where, "learning": learning, "sampling": sampling},
    )
    settings |= {"drawing": drawing, "prompts": texts}
    resolve_model(drawing.model)
    learning.check_prompts(len(texts))
    from noiseworks.ecodiff.learning import learn_masks
    from noiseworks.ecodiff.pruning import load_runs, units_where
    from noiseworks.kits.training import check_run, open_run

    check_run(out, settings)
    runs = load_runs(drawing, texts, sampling, hardware)
    units = units_where(runs.pipe, where)
    with open_run(out, settings) as run:
        masks = learn_masks(runs, units, learning, run)
        masks.save_pretrained(out / "masks")
    return {"masks": str(out / "masks"), "updates": masks.updates, "at most 0": masks.sparsity()}


def prune(
    *,
    model: str,
    out: Path,
    ranking: Spread[Ranking] = Ranking(),
    cut: Spread[Cut] = Cut(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Write the smaller pipeline, which diffusers loads without this package.

    Args:
        model: The whole pipeline: a directory, a hub id or testbed:<name>.
        out: Folder for the smaller one.
        ranking: What ranks the units.
        cut: How much is removed.
        sampling: How the baselines draw.
        hardware: Where the model runs.

    Returns:
        The folder, parameters before and after, and units that stay by family.
    """
    ranking.check_given()
    cut.check_given()
    check_folder(out, HOST_FOLDER, sources=(model, ranking.masks, ranking.calibration))
    texts = None if ranking.calibration is None else read_prompts(ranking.calibration)
    resolve_model(model)
    from noiseworks.ecodiff.pruning import kept_units, load_checked, summary
    from noiseworks.kits.diffusers_hosts.units import remove_units

    pipe = load_checked(model, hardware)
    kept, units = kept_units(pipe, ranking, cut, texts, sampling)
    remove_units(pipe, kept)
    with atomic_directory(out, HOST_FOLDER) as folder:
        pipe.save_pretrained(folder)
    return {"out": str(out), **summary(pipe, kept, units)}


def recover(
    *,
    drawing: Spread[Drawing],
    pruned: str,
    out: Path,
    recovery: Spread[Recovery] = Recovery(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Bring a pruned pipeline closer to the whole one by LoRA, merged; a stopped run goes on.

    Args:
        drawing: The whole pipeline, and prompts.
        pruned: The pruned pipeline, from prune.
        out: Folder of the run; the pipeline is in `model` inside of it.
        recovery: How.
        sampling: How the whole pipeline draws.
        hardware: Where the models run.

    Returns:
        The folder of the recovered pipeline.
    """
    texts, settings = (
        read_prompts(drawing.prompts),
        {"recovery": recovery, "sampling": sampling, "pruned": pruned},
    )
    settings |= {"drawing": drawing, "prompts": texts}
    resolve_model(drawing.model), resolve_model(pruned)
    from noiseworks.ecodiff.pruning import load_checked, load_runs
    from noiseworks.ecodiff.recovery import recover as train
    from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
    from noiseworks.kits.training import check_run, open_run

    check_run(out, settings)
    runs, small = load_runs(drawing, texts, sampling, hardware), load_checked(pruned, hardware)
    with open_run(out, settings) as run:
        train(runs, denoiser_of(small), recovery, run)
        with atomic_directory(out / "model", HOST_FOLDER) as folder:
            small.save_pretrained(folder)
    return {"model": str(out / "model"), "steps": recovery.steps}


def inspect(*, masks: Path) -> dict[str, Any]:
    """Show learned masks layer by layer.

    Args:
        masks: Folder that fit wrote.

    Returns:
        Updates, and for each layer its kind, units, units with a logit of at most 0, and the
        lowest, median and highest logit.
    """
    from noiseworks.ecodiff.masks import MaskSet

    found = MaskSet.from_pretrained(masks)
    layers = {
        path: {
            "kind": found.kinds[path],
            "units": len(values),
            "at most 0": int((values <= 0).sum()),
            "range": [float(values.min()), float(values.median()), float(values.max())],
        }
        for path, values in found.logits.items()
    }
    return {"updates": found.updates, "at most 0": found.sparsity(), "layers": layers}


def evaluate(
    *,
    drawing: Spread[Drawing],
    pruned: str,
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Measure a pruned pipeline against the whole one on prompts.

    Args:
        drawing: The whole pipeline, and prompts that the masks were not learned on.
        pruned: The pruned pipeline.
        sampling: How images are drawn, with the same noise by both.
        hardware: Where the models run.

    Returns:
        For both: parameters, mean squared latent error and SSIM to the whole one, seconds an image.
    """
    texts = read_prompts(drawing.prompts)
    resolve_model(drawing.model), resolve_model(pruned)
    from noiseworks.ecodiff.evaluation import report
    from noiseworks.ecodiff.pruning import load_checked, load_runs
    from noiseworks.kits.diffusers_hosts.layouts import denoiser_of

    runs, small = load_runs(drawing, texts, sampling, hardware), load_checked(pruned, hardware)
    return {"models": report(runs, {"whole": denoiser_of(runs.pipe), "pruned": denoiser_of(small)})}


def compare(
    *,
    drawing: Spread[Drawing],
    out: Path,
    contest: Spread[Contest],
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Try it on your own model: learned masks beside baselines at one size, from the same noise.

    Args:
        drawing: The whole pipeline, and prompts that the masks were not learned on.
        out: Folder for `comparison.csv`, `images.png` (a row a model, the whole one first) and `config.yaml`.
        contest: What is compared.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        A row a model: parameters, latent error and SSIM to the whole one, seconds an image.
    """
    texts = drawing.begin(out, COMPARISON, contest.masks)
    from noiseworks.ecodiff.pruning import contest_rows, load_runs
    from noiseworks.kits.diffusers_hosts.drawing import write_config, write_rows

    runs = load_runs(drawing, texts, sampling, hardware)
    with atomic_directory(out, COMPARISON) as folder:
        rows = contest_rows(runs, contest, folder / "images.png")
        write_rows(folder / "comparison.csv", tuple(rows[0]), (row.values() for row in rows))
        write_config(folder, COMPARISON, drawing=drawing, contest=contest, sampling=sampling)
    return {"models": rows}
