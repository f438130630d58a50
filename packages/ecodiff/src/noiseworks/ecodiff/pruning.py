"""From a ranking to a smaller pipeline: what the commands and the comparison share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import InputError
from noiseworks.ecodiff.evaluation import count_parameters, pruned_copy, report
from noiseworks.ecodiff.importance import magnitude_scores, random_scores, taylor_scores
from noiseworks.ecodiff.masks import MaskSet
from noiseworks.ecodiff.objective import Runs
from noiseworks.ecodiff.options import Contest, Cut, Method, Ranking, Sampling, Where
from noiseworks.ecodiff.selection import Kept, Scores, select
from noiseworks.kits.diffusers_hosts.drawing import load_for, prompts_for
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.kits.diffusers_hosts.loading import load_pipeline
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware
from noiseworks.kits.diffusers_hosts.units import Units, find_units

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")


def load_runs(drawing: Drawing, texts: Sequence[str], sampling: Sampling, hardware: Hardware) -> Runs:
    """Return runs of a pipeline that is loaded by name.

    Args:
        drawing: Names the pipeline.
        texts: Its prompts.
        sampling: How it draws.
        hardware: Where it runs.
    """
    return Runs(*load_for(drawing, texts, hardware, FAMILIES), sampling)


def load_checked(name: str, hardware: Hardware) -> "DiffusionPipeline":
    """Return a pipeline, pruned or whole, of a family that has units."""
    return load_pipeline(name, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)


def units_where(pipe: "DiffusionPipeline", where: Where) -> Units:
    """Return the units that may go."""
    return find_units(denoiser_of(pipe), where.names, where.include, where.exclude, where.min_heads)


def units_of_masks(pipe: "DiffusionPipeline", masks: MaskSet) -> Units:
    """Return the units that masks were learned on.

    Raises:
        InputError: When this pipeline's denoiser has other ones.
    """
    found = find_units(denoiser_of(pipe), masks.families)
    own = {path: group for path, group in found.groups.items() if path in masks.logits}
    units = replace(found, groups=own)
    masks.check_fits(units)
    return units


def scores_of(
    pipe: "DiffusionPipeline", units: Units, method: Method, runs: Runs | None = None, seed: int = 0
) -> Scores:
    """Return a baseline's scores.

    Args:
        pipe: The pipeline.
        units: Its units.
        method: "magnitude", "taylor" or "random".
        runs: The prompts that "taylor" looks at.
        seed: Of "taylor" and "random".

    Raises:
        InputError: When "taylor" has no prompts.
    """
    if method == "magnitude":
        return magnitude_scores(denoiser_of(pipe), units)
    if method == "random":
        return random_scores(units, seed)
    if runs is None:
        raise InputError("method taylor needs calibration prompts")
    return taylor_scores(denoiser_of(pipe), units, runs, seed)


def kept_units(
    pipe: "DiffusionPipeline",
    ranking: Ranking,
    cut: Cut,
    texts: Sequence[str] | None,
    sampling: Sampling,
) -> tuple[Kept, Units]:
    """Return the units that stay, and all units.

    Args:
        pipe: The pipeline.
        ranking: What ranks them.
        cut: How much goes.
        texts: The prompts that "taylor" looks at.
        sampling: How it draws.
    """
    if ranking.method == "learned":
        masks = MaskSet.from_pretrained(ranking.masks)
        units = units_of_masks(pipe, masks)
        return select(masks.logits, units, cut), units
    units = units_where(pipe, ranking)
    runs = None if texts is None else Runs(pipe, prompts_for(pipe, texts), sampling)
    return select(scores_of(pipe, units, ranking.method, runs, sampling.seed), units, cut), units


def summary(pipe: "DiffusionPipeline", kept: Kept, units: Units) -> dict[str, Any]:
    """Return parameters before and after, and the units that stay by family."""
    families = {}
    for kind in ("attn", "ffn", "norm"):
        paths = [path for path, group in units.groups.items() if group.kind == kind]
        if paths:
            families[kind] = {
                "kept": sum(len(kept[path]) for path in paths),
                "of": sum(units.groups[path].count for path in paths),
            }
    after = count_parameters(denoiser_of(pipe))
    return {"parameters": after, "before": units.total, "removed": 1 - after / units.total, "units": families}


def contest_rows(runs: Runs, contest: Contest, picture: Path) -> list[dict[str, Any]]:
    """Return a row a model: the whole one, the learned masks, the baselines, all at one size.

    Args:
        runs: The whole pipeline and the prompts.
        contest: What is compared.
        picture: Where their images go.
    """
    masks = MaskSet.from_pretrained(contest.masks)
    pipe, cut = runs.pipe, Cut(target_prunable=contest.target_prunable)
    units = units_of_masks(pipe, masks)
    scores = {"learned": masks.logits} | {
        method: scores_of(pipe, units, method, runs, runs.sampling.seed) for method in contest.names
    }
    smaller = {name: pruned_copy(pipe, select(found, units, cut)) for name, found in scores.items()}
    return report(runs, {"whole": denoiser_of(pipe), **smaller}, picture)
