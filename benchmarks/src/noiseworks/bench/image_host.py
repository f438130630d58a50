"""The text-to-image pipeline as a host of `noiseworks bench compose`: what methods on it cost and keep together."""

import time
from functools import cache
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Context, Measurement, Scale
from noiseworks.bench.compose import Host

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STEPS, GUIDANCE_SCALE, BATCH = 20, 4.0, 16


@cache
def _loaded(model: str, device: str) -> "tuple[DiffusionPipeline, list[int]]":
    """Return a pipeline, and the rows of each of its denoiser's forward passes, counted beneath all methods."""
    from noiseworks.kits.attachments import Wrap, attach
    from noiseworks.kits.diffusers_hosts import denoiser_of, load_pipeline

    pipe, rows = load_pipeline(model, device), []

    def counted(beneath: Any, *args: Any, **kwargs: Any) -> Any:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        rows.append(len(sample))
        return beneath(*args, **kwargs)

    attach("bench", [Wrap(denoiser_of(pipe), counted)])
    return pipe, rows


def load(context: Context) -> "DiffusionPipeline":
    """Return the pipeline, by default the testbed's."""
    return _loaded(context.model or "testbed:shapes", context.device)[0]


def measure(pipe: "DiffusionPipeline", seed: int, context: Context) -> Measurement:
    """Draw scenes of the testbed with what is attached: calls a sample, oracle score and seconds of each batch."""
    from noiseworks.bench.testbeds import shapes
    from noiseworks.kits.diffusers_hosts import Sampling, draw

    rows = _loaded(context.model or "testbed:shapes", context.device)[1]
    prompts = int(context.settings["prompts"])
    scenes = shapes.sample_scenes(prompts, seed, "test")
    captions = [shapes.caption(scene) for scene in scenes]
    sampling = Sampling(STEPS, GUIDANCE_SCALE, batch_size=BATCH, seed=seed * 1000)
    calls, scores, seconds, first, begin = [], [], [], 0, time.perf_counter()
    rows.clear()
    for images in draw(pipe, captions, sampling, "np"):
        count = len(images)
        seconds.append((time.perf_counter() - begin) / count)
        calls.append(sum(rows) / count)
        scores.append(float(shapes.score(images, scenes[first : first + count]).mean()))
        rows.clear()
        first, begin = first + count, time.perf_counter()
        context.progress(first, prompts, "drawing")
    return Measurement({"calls": calls, "score": scores, "seconds": seconds})


IMAGE_PIPELINE = Host(
    name="text-to-image pipeline",
    testbed="shapes",
    load=load,
    measure=measure,
    cost="calls",
    quality="score",
    tolerance=0.01,
    units="batch",
    scales={
        "smoke": Scale((500,), 300, {"prompts": 4}),
        "quick": Scale((500,), 300, {"prompts": 32}),
        "laptop": Scale((2000, 2001, 2002), 600, {"prompts": 192}),
    },
    columns={"calls": "network calls", "score": "oracle score", "seconds": "seconds per image"},
)
