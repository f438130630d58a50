"""Drawing the same concepts from the same noise under each policy, and how well the images show all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.black_scholes.diffusers import BlendTrace, attach
from noiseworks.black_scholes.options import Contest, Pricing, Watching
from noiseworks.black_scholes.policies import BlendPolicy, lowest, named_policy
from noiseworks.black_scholes.scorers import Scorer, score
from noiseworks.kits.diffusers_hosts.drawing import draw
from noiseworks.kits.diffusers_hosts.options import Sampling
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Blended:
    """Images of one policy.

    Attributes:
        images: [n, 3, H, W] in [0, 1], on the CPU.
        traces: One a batch; none where nothing was blended.
        seconds: One a batch, with decoding.
        sizes: Samples of each batch.
    """

    images: Tensor
    traces: list[BlendTrace]
    seconds: list[float]
    sizes: list[int]


def draw_blends(
    pipe: "DiffusionPipeline",
    concepts: Sequence[Sequence[Any]],
    policies: Mapping[str, BlendPolicy | str | None],
    sampling: Sampling,
    *,
    scorer: Scorer | None = None,
    watching: Watching = Watching(),
    progress: Progress | None = None,
) -> dict[str, Blended]:
    """Return the images of each policy, drawn batch by batch in turn from the same noise.

    Args:
        pipe: The pipeline.
        concepts: M concepts of each sample.
        policies: Name -> policy; a text joins the concepts to one prompt with it, None draws the first concept alone.
        sampling: How to draw.
        scorer: For policies that watch.
        watching: How the image in the making is looked at.
        progress: Called with (samples done, samples in all).
    """
    parts: dict[str, Blended] = {name: Blended(torch.empty(0), [], [], []) for name in policies}
    images: dict[str, list[Tensor]] = {name: [] for name in policies}
    for first in range(0, len(concepts), sampling.batch_size):
        rows = concepts[first : first + sampling.batch_size]
        chosen = replace(sampling, seed=sampling.seed + first)
        for name, policy in policies.items():
            plain = policy is None or isinstance(policy, str)
            prompts = [policy.join(row) if isinstance(policy, str) else row[0] for row in rows]
            others = [list(row[1:]) for row in rows]
            begin = time.perf_counter()
            with (
                nullcontext()
                if plain
                else attach(
                    pipe,
                    others,
                    policy,
                    scorer=scorer,
                    score_every=watching.score_every,
                    forecast=watching.forecast,
                ) as handle
            ):
                images[name].append(next(draw(pipe, prompts, chosen, "pt")).float().cpu())
                parts[name].traces.extend([] if plain else handle.traces)
            parts[name].seconds.append(time.perf_counter() - begin)
            parts[name].sizes.append(len(rows))
        if progress is not None:
            progress(min(first + sampling.batch_size, len(concepts)), len(concepts))
    return {name: replace(part, images=torch.cat(images[name])) for name, part in parts.items()}


def compare_policies(
    pipe: "DiffusionPipeline",
    concepts: Sequence[Sequence[Any]],
    sampling: Sampling,
    contest: Contest,
    pricing: Pricing = Pricing(),
    *,
    scorer: Scorer,
    judge: Scorer | None = None,
    watching: Watching = Watching(),
    strikes: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Blended]]:
    """Compare policies on a user's model.

    Args:
        pipe: The pipeline.
        concepts: M concepts of each sample.
        sampling: How to draw.
        contest: What is compared.
        pricing: Of bs and softmin.
        scorer: Steers.
        judge: Scores the results; by default the scorer.
        watching: How the image in the making is looked at.
        strikes: One a concept.
        progress: Called with (samples done, samples in all).

    Returns:
        A row a policy (mean of the lowest match of an image, mean match, seconds an image, decoded forecasts an image,
        how evenly steps were shared: the smallest concept's share), and the images.
    """
    plain: dict[str, str | None] = {"plain": None, "joined": contest.joint}
    chosen = {
        name: plain[name] if name in plain else named_policy(name, pricing, strikes) for name in contest.names
    }
    found = draw_blends(pipe, concepts, chosen, sampling, scorer=scorer, watching=watching, progress=progress)
    rows = []
    for name, part in found.items():
        matches = score(judge or scorer, part.images, concepts)
        shares = torch.cat([trace.shares for trace in part.traces]) if part.traces else None
        decodes = sum(trace.decodes * size for trace, size in zip(part.traces, part.sizes, strict=False))
        rows.append(
            {
                "policy": name,
                "lowest_match": float(matches.min(1).values.mean()),
                "mean_match": float(matches.mean()),
                "least_share": None if shares is None else float(shares.min(1).values.mean()),
                "seconds": sum(part.seconds) / len(concepts),
                "forecasts": decodes / len(concepts),
            }
        )
    return rows, found


def agreement(trace: BlendTrace) -> Tensor:
    """Return the share of a run's decisions that are those of the lowest score, [B]; of steps after a look only."""
    scores = trace.scores[:, :-1]
    known = scores.isfinite().all(-1)
    same = (trace.choices[:, 1:] == lowest(scores.flatten(0, 1)).view(known.shape)) & known
    return same.sum(1) / known.sum(1).clamp(min=1)
