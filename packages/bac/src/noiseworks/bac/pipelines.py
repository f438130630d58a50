"""Plans on diffusers' DiT pipelines, beside what else saves time there: uniform reuse, FirstBlockCache, fewer steps.

All arms draw the same labels from the same noise in turn, so that times and errors are of one run.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.choosing import best_plan, candidates
from noiseworks.bac.offline import bar
from noiseworks.bac.options import Pictures, Schedule
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import profile
from noiseworks.core.memory import peak_mib
from noiseworks.core.timing import in_turns
from noiseworks.kits.pictures import grid, to_pixels, write_picture
from torch import Tensor

THRESHOLDS = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Arm:
    """One way of drawing.

    Attributes:
        steps: Denoising steps.
        plan: What is attached, if anything.
        threshold: Of FirstBlockCache, if that is on.
    """

    steps: int
    plan: CachePlan | None = None
    threshold: float | None = None

    def on(self, pipe: Any) -> Any:
        """Return what puts the arm on a pipeline for a while."""
        if self.plan is not None:
            return attach(pipe, self.plan)
        return (
            nullcontext() if self.threshold is None else first_block_cache(pipe.transformer, self.threshold)
        )


@contextmanager
def first_block_cache(network: torch.nn.Module, threshold: float) -> Iterator[None]:
    """Put diffusers' FirstBlockCache on a transformer for a while.

    Args:
        network: A diffusers transformer with a list of blocks.
        threshold: Relative change of the first block's residual below which the others are reused.
    """
    from diffusers import CacheMixin
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    before = {module: dict(vars(module)) for module in network.modules()}
    apply_first_block_cache(network, FirstBlockCacheConfig(threshold=threshold))
    try:
        with CacheMixin.cache_context(network, "draw"):  # the pipeline opens none for this class
            yield
    finally:
        for module, held in before.items():  # diffusers' own removal leaves `forward` on the object
            for name in vars(module).keys() - held.keys():
                delattr(module, name)


def drawer(pipe: Any, pictures: Pictures) -> Callable[[int, int], Tensor]:
    """Return what draws: (seed of the noise, steps) -> images [B, H, W, 3] in 0 to 1."""

    def draw(seed: int, steps: int) -> Tensor:
        rows = range(len(pictures.labels))
        generators = [torch.Generator().manual_seed(1000 * seed + row) for row in rows]
        drawn = pipe(
            class_labels=list(pictures.labels),
            num_inference_steps=steps,
            guidance_scale=pictures.guidance_scale,
            generator=generators,
            output_type="np",
        )
        return torch.from_numpy(drawn.images)

    return draw


def arms_of(
    pipe: Any, draw: Callable[[int, int], Tensor], schedule: Schedule, pictures: Pictures
) -> dict[str, Arm]:
    """Return the arms: plans are made from a profile of other noise than they are compared with."""
    steps, updates = pictures.pipeline_steps, schedule.updates
    found = profile(pipe, run=lambda: draw(2, steps))
    best, _ = best_plan(pipe, candidates(found, schedule=schedule), lambda seed: draw(3 + seed, steps))
    arms = {
        "full": Arm(steps),
        "best": Arm(steps, best),
        "bac": Arm(steps, make_plan(found, schedule)),
        "unified": Arm(steps, CachePlan.unified(found, schedule)),
        "uniform": Arm(steps, CachePlan.of_updates(found, updates)),
    }
    arms |= {f"FirstBlockCache {value:g}": Arm(steps, threshold=value) for value in THRESHOLDS}
    return arms | {f"{n} steps": Arm(n) for n in sorted({updates, 2 * updates}) if n < steps}


def compare_pipeline(
    pipe: Any, schedule: Schedule, pictures: Pictures, repeats: int, picture: Path | None = None
) -> Mapping[str, dict[str, float | None]]:
    """Return each arm's milliseconds, speed-up over the full run, calls, memory, share of blocks and error of images.

    Args:
        pipe: A DiT pipeline.
        schedule: Of the plans.
        pictures: What is drawn.
        repeats: Timed runs of each arm.
        picture: PNG or WebP file for the images, a row an arm.
    """
    pipe.set_progress_bar_config(disable=True)
    draw = drawer(pipe, pictures)
    arms = arms_of(pipe, draw, schedule, pictures)
    images: dict[str, Tensor] = {}
    peaks, calls = {}, {}
    for name, arm in arms.items():
        seen: list[int] = []
        hook = pipe.transformer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        with arm.on(pipe):
            _, peaks[name] = peak_mib(partial(draw, 0, arm.steps), pipe.device)
        hook.remove()
        calls[name] = len(seen)

    def timed(name: str, turn: int) -> float:
        with arms[name].on(pipe):  # attaching does not count
            begin = time.perf_counter()
            images[name] = draw(0, arms[name].steps)
            return time.perf_counter() - begin

    with bar() as bars:
        task = bars.add_task("drawing", total=repeats)
        each = {name: partial(timed, name) for name in arms}
        times = in_turns(each, repeats, warmup=0, keep=True, progress=lambda _: bars.advance(task))
    if picture is not None:
        write_picture(
            grid({name: to_pixels(drawn.permute(0, 3, 1, 2)) for name, drawn in images.items()}), picture
        )
    medians = {name: float(np.median(times[name].results)) for name in arms}
    return {
        name: {
            "milliseconds": 1e3 * medians[name],
            "times_faster": medians["full"] / medians[name],
            "calls": calls[name],
            "peak_mib": peaks[name],
            "share": None if arm.plan is None else arm.plan.share,
            "error": float((images[name] - images["full"]).square().mean()),
        }
        for name, arm in arms.items()
    }
