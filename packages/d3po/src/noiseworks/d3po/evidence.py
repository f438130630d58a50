"""What the claim trains and measures: a pipeline of `shapes` that is to draw brighter images, judged in pairs.

The captions leave the background open, so that brightness is the pipeline's to choose, and everything else that they
state is to stay right. All arms see equally many images and make equally many optimiser steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.bench.claims import Context
from noiseworks.bench.testbeds import shapes
from noiseworks.d3po.options import Preference, Training
from noiseworks.d3po.training import D3PO
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.image_tuning import (
    DDPO,
    BestOfTwo,
    DDPOSettings,
    Draws,
    Policy,
    Rollout,
    Trial,
    Tuner,
    draw_scored,
    win_rate,
)
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from torch import Tensor

ROLLOUT = Rollout(num_inference_steps=5, guidance_scale=1.0, rollout_batch=32)
# Larger than the published ones, which are for Stable Diffusion and tens of thousands of images. Four images a prompt,
# each from noise of its own: two that start alike often have one background, and their order says little.
# The clamp is narrow so that the last steps, whose noise is small and whose ratios move by far the most, soon leave it,
# and the first ones, in which brightness is decided, go on teaching.
PREFERENCE = Preference(copies=4, shared_start=False, beta=1.0, clamp_eps=0.01)
LEARNING_RATE, MINIBATCH, CLIP = 1e-2, 16, 1e-2  # the minibatch is of images


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the hidden score, the mean of all pixels [B]."""
    return images.flatten(1).mean(1)


class Shuffled(D3PO):
    """The control: the same images, with preferences thrown by a coin."""

    def round(self, step: int) -> Mapping[str, float]:
        """Do a round of D3PO whose scores are noise."""
        generator = torch.Generator().manual_seed(self.seed(9))
        self.reward = lambda images, prompts: torch.rand(len(images), generator=generator)
        return super().round(step)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: prompts, the trial and what the untuned pipeline draws in it.

    `rivals` are images of the untuned pipeline from other noise, which those of the trial are to beat.
    """

    seed: int
    model: str
    prompts: Sequence[str]
    trial: Trial
    base: Draws
    rivals: Draws


def open_captions(seed: int, count: int) -> list[str]:
    """Return `count` captions of single objects without a background."""
    found: dict[str, None] = {}
    for scene in shapes.sample_scenes(20 * count, seed, "test"):
        if scene.kind == "single" and len(found) < count:
            found[shapes.caption(scene).rpartition(" on a ")[0]] = None
    return list(found)


def prepare(seed: int, context: Context) -> Shared:
    """Draw the trial of a seed with the untuned pipeline."""
    model, prompts = context.model or "testbed:shapes", open_captions(seed, int(context.settings["prompts"]))
    trial = Trial(per_prompt=int(context.settings["per_prompt"]), trial_seed=seed * 1000)
    policy = Policy(load_pipeline(model, context.device), prompts, ROLLOUT)
    base, rivals = (
        draw_scored(policy, brightness, one) for one in (trial, replace(trial, trial_seed=seed * 1000 + 500))
    )
    return Shared(seed, model, prompts, trial, base, rivals)


def trained(arm: str, shared: Shared, context: Context, **changes: Any) -> Tuner:
    """Return the trainer of an arm when it is done."""
    options = Training(
        max_steps=int(context.settings["rounds"]),
        batch_size=int(context.settings["batch"]),
        learning_rate=LEARNING_RATE,
        minibatch=MINIBATCH,
        seed=shared.seed,
        device=context.device,
    )
    options = replace(options, **changes)
    pipe, images = options.pipeline(shared.model), 2 * options.batch_size
    start = (pipe, shared.prompts, brightness)
    if arm in ("d3po", "shuffled"):
        copies = PREFERENCE.copies
        grouped = replace(options, batch_size=max(1, images // copies), minibatch=max(1, MINIBATCH // copies))
        trainer = (D3PO if arm == "d3po" else Shuffled)(*start, grouped, ROLLOUT, PREFERENCE)
    elif arm == "ddpo":
        trainer = DDPO(*start, options, ROLLOUT, DDPOSettings(copies=2, clip=CLIP))
    else:
        trainer = BestOfTwo(*start, replace(options, minibatch=MINIBATCH // 2), ROLLOUT)
    trainer.fit(progress=False)
    return trainer


def measured(arm: str, shared: Shared, context: Context) -> tuple[dict[str, list[float]], Draws]:
    """Return what an arm draws in the trial: brightness, gain and wins against the untuned pipeline, fidelity.

    An image wins against the share of its prompt's rivals that it is brighter than, which are from other noise. Between
    images from one noise the least common drift of weights decides nearly all wins, and preferences by coin would win
    nearly all or none, however small their steps. The gain is over the untuned pipeline's image from the same noise.
    `progress` is the gain, of DDPO four fifths of it: a ratio would have no meaning where that gain comes near 0.
    """
    draws = (
        shared.base
        if arm == "base"
        else draw_scored(trained(arm, shared, context).policy, brightness, shared.trial)
    )
    texts = [shared.prompts[i] for i in draws.prompt_ids.tolist()]
    new, old = draws.rewards[:, 0], shared.base.rewards[:, 0]
    return {
        "wins": beaten(draws, shared.rivals).tolist(),
        "brightness": new.tolist(),
        "gain": (new - old).tolist(),
        "progress": ((new - old) * (0.8 if arm == "ddpo" else 1.0)).tolist(),
        "fidelity": shapes.caption_score(draws.images, texts).tolist(),
    }, draws


def beaten(draws: Draws, rivals: Draws) -> Tensor:
    """Return for each image the share of its prompt's rivals that have a lower score; equal ones count half [n]."""
    prompts = int(draws.prompt_ids.max()) + 1
    new, old = (one.rewards[:, 0].view(prompts, -1) for one in (draws, rivals))
    return win_rate(new[:, :, None], old[:, None]).mean(2).flatten()


def save_strip(draws: Draws, path: Path) -> Path:
    """Write the first image of eight prompts side by side."""
    first = draws.images[:: max(1, len(draws.images) // 8)][:8]
    return write_picture(strip(to_pixels(first), scale=2), path)
