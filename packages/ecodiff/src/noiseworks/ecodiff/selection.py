"""From scores to the units that stay (section 3.4): by a budget of parameters, by ratios, or by a threshold."""

from collections.abc import Mapping

import torch
from noiseworks.core.errors import InputError
from noiseworks.ecodiff.options import Cut
from noiseworks.kits.diffusers_hosts.units import Units
from torch import Tensor

Scores = Mapping[str, Tensor]
Kept = dict[str, list[int]]


def select(scores: Scores, units: Units, cut: Cut) -> Kept:
    """Return the units that stay, by path; units with higher scores stay, and the earlier one among equals.

    Args:
        scores: Path -> a score a unit, `[count]`: logits, or what a baseline says.
        units: The denoiser's units.
        cut: How much goes.

    Raises:
        InputError: When all scores of a family are equal, which is no ranking, or the budget is out of reach.
    """
    cut.check_given()
    if scores.keys() != units.groups.keys():
        raise InputError(
            "these scores are of other layers than this denoiser's: name the model they were made on"
        )
    _refuse_unranked(scores, units)
    if cut.threshold is not None:
        masks = {path: values > cut.threshold for path, values in scores.items()}
    elif cut.ratios:
        masks = _by_ratio(scores, units, cut)
    else:
        masks = _by_budget(scores, units, _budget(units, cut))
    return {path: _rounded(mask, scores[path], units, path, cut) for path, mask in masks.items()}


def _refuse_unranked(scores: Scores, units: Units) -> None:
    for family in {group.kind for group in units.groups.values()}:
        values = _family(scores, units, family)
        if len(values) > 1 and bool((values == values[0]).all()):
            raise InputError(f"all units of family {family} have the same score: learn the masks first")


def _family(scores: Scores, units: Units, family: str) -> Tensor:
    return torch.cat([scores[path] for path, group in units.groups.items() if group.kind == family])


def _by_ratio(scores: Scores, units: Units, cut: Cut) -> dict[str, Tensor]:
    """Keep int(n ratio) units of a family, or of each layer."""
    masks = {path: torch.ones(len(values), dtype=torch.bool) for path, values in scores.items()}
    for family, ratio in cut.ratios.items():
        paths = [path for path, group in units.groups.items() if group.kind == family]
        if not paths:
            raise InputError(f"there are no units of family {family} here: leave its ratio out")
        for part in [paths] if cut.scope == "global" else [[path] for path in paths]:
            joined = torch.cat([scores[path] for path in part])
            order = joined.sort(descending=True, stable=True).indices
            kept = torch.zeros(len(joined), dtype=torch.bool)
            kept[order[: int(len(joined) * ratio)]] = True
            masks.update(zip(part, kept.split([len(scores[path]) for path in part]), strict=True))
    return masks


def _budget(units: Units, cut: Cut) -> float:
    """Return how many parameters have to go."""
    if cut.target_prunable is not None:
        return (1 - cut.target_prunable) * units.prunable
    share, most = 1 - cut.target_params, units.prunable / units.total
    if share > most:
        raise InputError(
            f"target_params {cut.target_params:g} is out of reach: without all of these units {1 - most:.3f} of the "
            "parameters are left; prune more families"
        )
    return share * units.total


def _by_budget(scores: Scores, units: Units, budget: float) -> dict[str, Tensor]:
    """Remove units of all families from the lowest score up until their parameters fill the budget.

    Units differ in price (a head of width 64 in a layer of 1280 has 327,680 parameters, a GEGLU neuron 3,842), so a
    unit that would overshoot by more than it falls short now is left, and so are all above it.
    """
    paths = list(units.groups)
    joined = torch.cat([scores[path] for path in paths])
    price = torch.cat([torch.full((len(scores[path]),), float(units.prices[path])) for path in paths])
    # the later one of equals goes first
    order = joined.flip(0).sort(stable=True).indices
    order = len(joined) - 1 - order
    spent = price[order].double().cumsum(0)
    count = int((spent <= budget).sum())
    if count < len(order):
        short = budget - (float(spent[count - 1]) if count else 0.0)
        count += float(spent[count]) - budget < short
    kept = torch.ones(len(joined), dtype=torch.bool)
    kept[order[:count]] = False
    return dict(zip(paths, kept.split([len(scores[path]) for path in paths]), strict=True))


def _rounded(mask: Tensor, scores: Tensor, units: Units, path: str, cut: Cut) -> list[int]:
    count = int(mask.sum())
    if units.groups[path].kind == "ffn" and count % cut.multiple_of:
        count = min(len(mask), -(-count // cut.multiple_of) * cut.multiple_of)
        best = scores.masked_fill(mask, torch.inf).sort(descending=True, stable=True).indices[:count]
        return sorted(best.tolist())
    return mask.nonzero().flatten().tolist()
