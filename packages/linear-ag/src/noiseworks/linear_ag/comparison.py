"""Comparing guidance policies on a user's own model and prompts: calls, likeness to full guidance, seconds."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.drawing import Progress, Prompts, draw, progress_bar, write_rows
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
from noiseworks.linear_ag.calibration import calibrate, fit_linear
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.naming import Ingredients, needs_coefficients, numbered_policy
from noiseworks.linear_ag.options import Aim, Contest
from noiseworks.linear_ag.policies import FixedPolicy, GuidancePolicy
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from rich.table import Table


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
        peak_mib: Largest memory that tensors took on the GPU, in MiB; None on other devices.
    """

    policy: str
    steps: int
    calls: float
    psnr: float
    ssim: float
    seconds: float
    time_ratio: float
    peak_mib: float | None


@dataclass
class _Tally:
    calls: list[int] = field(default_factory=list)
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
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
        for name, (images, calls, seconds, peak) in drawn.items():
            full, tally = drawn["cfg"][0], tallies[name]
            tally.calls += calls
            tally.psnr.append(peak_signal_to_noise(2 * full - 1, 2 * images - 1))
            tally.ssim.append(structural_similarity(full, images, darkest=0.0))
            tally.seconds.append(seconds)
            tally.peaks += [] if peak is None else [peak]
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
) -> tuple[Tensor, list[int], float, float | None]:
    """Return the images of one batch on the CPU, calls of each sample, seconds and MiB of the whole batch."""
    steps, policy = entry
    chosen = replace(sampling, num_inference_steps=steps)
    on_gpu = pipe.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(pipe.device)
    begin = time.perf_counter()
    with attach(pipe, policy) as handle:
        images = next(draw(pipe, prompts, chosen, "pt", start=first)).float().cpu()  # waits for a GPU
        seconds = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated(pipe.device) / 2**20 if on_gpu else None
        return images, handle.report.nfe, seconds, peak


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
        peak_mib=max(tally.peaks, default=None),
    )


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        policies: One row a policy, full guidance first.
        threshold: Adaptive Guidance's threshold, where it took part.
    """

    policies: tuple[PolicyScore, ...]
    threshold: float | None

    def __rich__(self) -> "Table":
        from rich.table import Table

        table = Table(title="against full guidance (cfg) from the same noise")
        for name in ("policy", "steps", "calls", "PSNR (dB)", "SSIM", "s / image", "time ratio", "MiB"):
            table.add_column(name)
        for row in self.policies:
            numbers = (f"{row.calls:.1f}", f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.seconds:.3f}")
            peak = "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"
            table.add_row(row.policy, str(row.steps), *numbers, f"{row.time_ratio:.3f}", peak)
        return table

    def write(self, folder: Path, images: Mapping[str, Tensor]) -> None:
        """Write `comparison.csv`, `report.json` and `images.png` (a row of images a policy) to a folder."""
        rows = [asdict(row) for row in self.policies]
        write_rows(folder / "comparison.csv", tuple(rows[0]), (row.values() for row in rows))
        (folder / "report.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        Image.fromarray(image_grid(images).numpy()).save(folder / "images.png")


def compare_named(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    others: Prompts,
    sampling: Sampling,
    contest: Contest,
    given: Ingredients,
) -> tuple[Comparison, dict[str, Tensor]]:
    """Calibrate and fit what named policies need, and compare them with full guidance.

    Returns the comparison, and the images of the first batch as `compare_policies` does.

    Args:
        pipe: The pipeline.
        prompts: What is drawn.
        others: What is calibrated and fitted on, under other seeds.
        sampling: How to draw.
        contest: The policies' names and the calibration's aim.
        given: Threshold and coefficients as far as they are given.
    """
    apart = replace(sampling, seed=sampling.seed + len(prompts))
    if contest.target_nfe is not None and "ag" in contest.names:
        aim = Aim(target_nfe=contest.target_nfe)
        with progress_bar("calibrating") as progress:
            found = calibrate(pipe, others, apart, aim, given.adaptive, progress)
        given = replace(given, adaptive=found)
    if given.coefficients is None and any(map(needs_coefficients, contest.names)):
        with progress_bar("fitting") as progress:
            given = replace(given, coefficients=fit_linear(pipe, others, apart, progress=progress))
    chosen = {name: numbered_policy(name, given) for name in contest.names if name != "cfg"}
    with progress_bar("comparing") as progress:
        scores, images = compare_policies(pipe, prompts, sampling, chosen, progress)
    return Comparison(tuple(scores), given.adaptive.threshold if "ag" in contest.names else None), images


def image_grid(rows: Mapping[str, Tensor], most: int = 8) -> Tensor:
    """Return one picture, uint8 `[H, W, 3]`: a row of at most `most` images for each policy."""
    lines = [torch.cat(list(images[:most]), dim=-1) for images in rows.values()]
    return torch.cat(lines, dim=-2).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
