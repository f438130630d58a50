"""Seconds of samplers on a host: what of them is the network, and how they grow with the number of time steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.source import draw
from torch import Tensor


@dataclass
class Stopwatch:
    """A denoiser that counts its own seconds."""

    inner: Denoiser
    seconds: float = 0.0

    def __call__(self, *inputs: Any) -> Tensor:
        """Call the denoiser."""
        begin = time.perf_counter()
        try:
            return self.inner(*inputs)
        finally:
            self.seconds += time.perf_counter() - begin


def time_arm(arm: str, denoiser: Denoiser, canvas: Tensor, mask_id: int, steps: int, seed: int):
    """Return seconds, seconds in the network, and network calls of sampling a canvas [B, L] of masks."""
    watch = Stopwatch(denoiser)
    draw(arm, watch, canvas[:, :4], mask_id, 4, seed)  # warm up
    watch.seconds, begin = 0.0, time.perf_counter()
    found = draw(arm, watch, canvas, mask_id, steps, seed)
    return time.perf_counter() - begin, watch.seconds, found.calls


def over_steps(
    arm: str,
    denoiser: Denoiser,
    grid: Sequence[tuple[int, Sequence[int]]],
    device: str,
    mask_id: int,
    seed: int,
) -> dict[str, tuple[list[float], list[float]]]:
    """Return seconds a sequence against T / L, one curve a length; first-hitting has no T, its curve is level.

    Args:
        arm: ancestral, lazy or fhs.
        denoiser: Of the host.
        grid: Lengths L, each with numbers of time steps T.
        device: Of the host.
        mask_id: Id of [MASK].
        seed: Of the samples.
    """
    series = {}
    for length, steps in grid:
        canvas = torch.full((1, length), mask_id, device=device)
        taken = steps if arm != "fhs" else steps[:1]
        seconds = [time_arm(arm, denoiser, canvas, mask_id, number, seed)[0] for number in taken]
        level = seconds * len(steps) if arm == "fhs" else seconds
        series[f"seconds a sequence of {length} tokens, over T / L"] = ([n / length for n in steps], level)
    return series
