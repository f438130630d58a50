"""What the claim trains and measures: each arm ranks the same units, is pruned to one size, and draws the same noise.

Calibration captions come from the training scenes under a seed of their own, evaluation captions from test scenes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes.architectures import T5_TOKENS
from noiseworks.ecodiff.evaluation import count_parameters, decoded, draw_all, latent_errors, pruned_copy
from noiseworks.ecodiff.learning import learn_masks
from noiseworks.ecodiff.objective import Runs
from noiseworks.ecodiff.options import Cut, Learning
from noiseworks.ecodiff.pruning import scores_of
from noiseworks.ecodiff.selection import select
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.kits.diffusers_hosts.loading import load_pipeline
from noiseworks.kits.diffusers_hosts.options import CallSampling
from noiseworks.kits.diffusers_hosts.units import find_units
from noiseworks.kits.images import structural_similarity
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from torch import Tensor

MODEL, KEEP = "testbed:shapes-sd3", 0.8
GUIDANCE_SCALE, BATCH, SHOWN = 4.0, 16, 8
# Chosen on tuning seeds: the bounded penalty ranks units below 0 as well, where the raw one stops.
LEARNING = Learning(start=1.0, eps=0.1, beta=0.5, bounded=True, lr_attn=0.1, lr_ffn=0.1)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: what each drew and took, and the scenes."""

    latents: Mapping[str, Tensor]
    images: Mapping[str, Tensor]
    seconds: Mapping[str, list[float]]
    parameters: Mapping[str, int]
    kept: Mapping[str, dict[str, int]]
    scenes: Sequence[Any]


def draw_arms(seed: int, context: Context, arms: Sequence[str]) -> Shared:
    """Rank, prune and draw.

    Args:
        seed: The seed.
        context: Sizes, model, device and progress.
        arms: Names of the arms.
    """
    sizes = context.settings
    pipe = load_pipeline(context.model or MODEL, context.device, families=("sd", "sdxl", "sd3", "flux"))
    units = find_units(denoiser_of(pipe))
    captions = [shapes.caption(s) for s in shapes.sample_scenes(sizes["calibration"], seed + 1, "train")]
    scenes = shapes.sample_scenes(sizes["prompts"], seed, "test")
    # the testbed's T5 is trained at 20 tokens; the pipeline's own 256 would be four fifths of the sequence
    short = {} if context.model else {"max_sequence_length": T5_TOKENS}
    sampling = CallSampling(sizes["steps"], GUIDANCE_SCALE, extra=short)
    calibration = Runs(pipe, captions, replace(sampling, batch_size=4, seed=seed * 1000 + 500))
    scores = {}
    for number, arm in enumerate(arms[1:]):
        context.progress(number, len(arms), f"ranking: {arm}")
        if arm in ("step", "ecodiff"):
            objective = "trajectory" if arm == "ecodiff" else "step"
            learning = replace(LEARNING, objective=objective, epochs=sizes["epochs"], mask_seed=seed)
            masks = learn_masks(calibration, units, learning, progress=False)
            scores[arm] = {path: values.detach().cpu() for path, values in masks.logits.items()}
        else:
            scores[arm] = scores_of(pipe, units, arm, calibration, seed)
    kept = {arm: select(found, units, Cut(target_prunable=KEEP)) for arm, found in scores.items()}
    denoisers = {"whole": denoiser_of(pipe)} | {arm: pruned_copy(pipe, one) for arm, one in kept.items()}
    context.progress(len(arms) - 1, len(arms), "drawing")
    test = Runs(
        pipe,
        [shapes.caption(scene) for scene in scenes],
        replace(sampling, batch_size=BATCH, seed=seed * 1000),
    )
    latents, seconds = draw_all(test, denoisers)
    return Shared(
        latents=latents,
        images={arm: decoded(pipe, found) for arm, found in latents.items()},
        seconds=seconds,
        parameters={arm: count_parameters(one) for arm, one in denoisers.items()},
        kept={arm: {path: len(numbers) for path, numbers in one.items()} for arm, one in kept.items()},
        scenes=scenes,
    )


def oracle_scores(images: Tensor, scenes: Sequence[Any]) -> np.ndarray:
    """Return the share of requested attributes that the oracle finds, `[n]`; larger images are shrunk."""
    if images.shape[-1] != 32:
        images = torch.nn.functional.interpolate(images, size=(32, 32), mode="area")
    return shapes.score(images.permute(0, 2, 3, 1).numpy(), scenes)


def measure(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Return what one arm measured: a value a prompt, and seconds a batch."""
    images, whole = shared.images[arm], shared.images["whole"]
    picture: Path = write_picture(strip(to_pixels(images[:SHOWN]), scale=2), context.folder / f"{arm}.png")
    notes = () if arm != "ecodiff" else (layers_sentence(shared.kept[arm]),)
    return Measurement(
        {
            "latent_error": latent_errors(shared.latents[arm], shared.latents["whole"]).tolist(),
            "score": oracle_scores(images, shared.scenes).tolist(),
            "ssim": structural_similarity(whole, images, darkest=0.0).tolist(),
            "parameters": float(shared.parameters[arm]),
            "seconds": shared.seconds[arm],
        },
        images={label: picture},
        notes=notes,
    )


def layers_sentence(kept: Mapping[str, int]) -> str:
    """Say how many units of each layer stay."""
    return "Units that stay: " + ", ".join(f"{path} {count}" for path, count in kept.items()) + "."
