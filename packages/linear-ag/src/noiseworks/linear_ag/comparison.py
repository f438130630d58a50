"""Comparing guidance policies on a user's own model and prompts: calls, likeness to full guidance, seconds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.policies import FixedPolicy, GuidancePolicy
from noiseworks.linear_ag.sampling import Progress, Prompts, Sampling, sample
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class PolicyScore:
    """What a policy cost, and how close its images are to those of full guidance from the same noise.

    Attributes:
        policy: Its name.
        steps: Denoising steps.
        calls: Mean network evaluations a sample.
        psnr: Mean PSNR in dB to full guidance's images; at most 126, for equal ones.
        ssim: Mean SSIM to them.
        seconds: Mean seconds an image, with decoding.
        time_ratio: Median over batches of the seconds as a share of full guidance's on the same batch.
    """

    policy: str
    steps: int
    calls: float
    psnr: float
    ssim: float
    seconds: float
    time_ratio: float


@dataclass
class _Tally:
    calls: list[int] = field(default_factory=list)
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)


def compare_policies(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    policies: Mapping[str, tuple[int, GuidancePolicy]],
    progress: Progress | None = None,
) -> tuple[list[PolicyScore], dict[str, Tensor]]:
    """Draw the same prompts from the same noise under each policy and compare with full guidance.

    Full guidance is drawn first on each batch and the policies take turns behind it, so that a machine which
    slows down slows all of them. One guided step before anything else warms up.

    Args:
        pipe: The pipeline.
        prompts: Texts, or class labels for DiT.
        sampling: How to draw; its number of steps is that of full guidance.
        policies: Name -> (number of steps, policy).
        progress: Called with (samples done, samples in all).

    Returns:
        One score a policy, full guidance ("cfg") first, and the images of the first batch by policy,
        `[B, 3, H, W]` in [0, 1].

    Raises:
        InputError: When there are no prompts.
    """
    if not prompts:
        raise InputError("no prompts given: name at least one")
    steps = sampling.num_inference_steps
    entries = {"cfg": (steps, FixedPolicy(actions="2" * steps)), **policies}
    tallies = {name: _Tally() for name in entries}
    _draw(pipe, prompts, sampling, (1, FixedPolicy(actions="2")), 0)
    for first in range(0, len(prompts), sampling.batch_size):
        drawn = {name: _draw(pipe, prompts, sampling, entry, first) for name, entry in entries.items()}
        for name, (images, calls, seconds) in drawn.items():
            pair, tally = (2 * drawn["cfg"][0] - 1, 2 * images - 1), tallies[name]
            tally.calls += calls
            tally.psnr.append(peak_signal_to_noise(*pair))
            tally.ssim.append(structural_similarity(*pair))
            tally.seconds.append(seconds)
            if not first:
                tally.shown.append(images)
        if progress is not None:
            progress(min(first + sampling.batch_size, len(prompts)), len(prompts))
    base = tallies["cfg"].seconds
    scores = [_score(name, entries[name][0], tally, base, len(prompts)) for name, tally in tallies.items()]
    return scores, {name: tally.shown[0] for name, tally in tallies.items()}


def _draw(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    entry: tuple[int, GuidancePolicy],
    first: int,
) -> tuple[Tensor, list[int], float]:
    """Return the images of one batch on the CPU, calls of each sample, and seconds of the whole batch."""
    steps, policy = entry
    chosen = replace(sampling, num_inference_steps=steps)
    begin = time.perf_counter()
    with attach(pipe, policy) as handle:
        images = (
            next(sample(pipe, prompts, chosen, "pt", start=first)).float().cpu()
        )  # the copy waits for a GPU
        seconds = time.perf_counter() - begin
        return images, handle.report.nfe, seconds


def _score(name: str, steps: int, tally: _Tally, base: Sequence[float], count: int) -> PolicyScore:
    ratios = torch.tensor(tally.seconds) / torch.tensor(base)
    return PolicyScore(
        policy=name,
        steps=steps,
        calls=sum(tally.calls) / count,
        psnr=float(torch.cat(tally.psnr).mean()),
        ssim=float(torch.cat(tally.ssim).mean()),
        seconds=sum(tally.seconds) / count,
        time_ratio=float(ratios.quantile(0.5)),
    )


def image_grid(rows: Mapping[str, Tensor], most: int = 8) -> Tensor:
    """Return one picture, uint8 `[H, W, 3]`: a row of at most `most` images for each policy."""
    lines = [torch.cat(list(images[:most]), dim=-1) for images in rows.values()]
    return torch.cat(lines, dim=-2).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
