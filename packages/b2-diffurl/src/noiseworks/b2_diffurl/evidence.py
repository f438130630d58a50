"""What the claim trains and measures: a pipeline of `shapes` that is to draw what a caption names.

Without guidance it gets one of them wrong often. Each seed takes few captions, so that as many scored images belong to
each as a laptop can draw, and such as come out right a third of the time. They leave position, size and background
open, so that images can differ. All arms score equally many images; the reward has three values, none, half or all of
what is named.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from noiseworks.b2_diffurl.options import Branching, Stages, Training
from noiseworks.b2_diffurl.training import B2DiffuRL
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.image_tuning import (
    DDPO,
    DDPOSettings,
    Draws,
    Policy,
    Rollout,
    Trial,
    Tuner,
    diversity,
    draw_scored,
)
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from torch import Tensor

ROLLOUT = Rollout(num_inference_steps=10, guidance_scale=1.0, rollout_batch=32)
STAGES = Stages(left=7, right=10)  # the published shares of the sampler's steps, 14 to 20 of 20
BRANCHING = Branching(branches=4, clip=1e-2)
# Larger than the published ones, which are for Stable Diffusion and 128,000 images.
LEARNING_RATE, MINIBATCH, ACCUMULATE = 5e-3, 16, 1
WANTED = 0.35  # share of a caption's images that is right, by which captions are chosen


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the share right of what each caption names, rounded down to 0, 1/2 or 1 [B]."""
    return torch.from_numpy(shapes.caption_score(images, prompts)).mul(2).add(1e-6).floor().div(2).float()


class Shuffled(B2DiffuRL):
    """The control: the same images, with their rewards in random order."""

    def round(self, step: int) -> Mapping[str, float]:
        """Do a stage whose rewards belong to other images."""
        generator = torch.Generator().manual_seed(self.seed(9))

        def shuffled(images: Tensor, prompts: Sequence[str]) -> Tensor:
            return reward(images, prompts)[torch.randperm(len(images), generator=generator)]

        self.reward = shuffled
        return super().round(step)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: captions, the trial and what the untuned pipeline draws in it."""

    seed: int
    model: str
    prompts: Sequence[str]
    trial: Trial
    base: Draws


def open_captions(seed: int, count: int) -> list[str]:
    """Return `count` captions that name a colour and a shape, and nothing else."""
    found = {}
    for scene in shapes.sample_scenes(100 * count, seed, "test"):
        if scene.kind == "single" and len(found) < count:
            found[f"a {scene.objects[0].color} {scene.objects[0].shape}"] = None
    return list(found)


def prepare(seed: int, context: Context) -> Shared:
    """Choose the captions of a seed, and draw its trial with the untuned pipeline."""
    settings, model = context.settings, context.model or "testbed:shapes"
    pipe, texts = load_pipeline(model, context.device), open_captions(seed, int(settings["candidates"]))
    looks = draw_scored(
        Policy(pipe, texts, ROLLOUT), reward, Trial(int(settings["looks"]), seed * 1000 + 500)
    )
    right = (looks.rewards[:, 0] == 1).float().view(len(texts), -1).mean(1)
    order = (right - WANTED).abs().argsort(stable=True)[: int(settings["prompts"])]
    prompts, trial = [texts[i] for i in order], Trial(int(settings["per_prompt"]), seed * 1000)
    return Shared(seed, model, prompts, trial, draw_scored(Policy(pipe, prompts, ROLLOUT), reward, trial))


def trained(arm: str, shared: Shared, context: Context, **changes: Any) -> Tuner:
    """Return the trainer of an arm when it is done."""
    options = Training(
        max_steps=int(context.settings["stages"]),
        batch_size=int(context.settings["groups"]),
        learning_rate=LEARNING_RATE,
        minibatch=MINIBATCH,
        accumulate=ACCUMULATE,
        seed=shared.seed,
        device=context.device,
    )
    options = replace(options, **changes)
    start = (options.pipeline(shared.model), shared.prompts, reward, options, ROLLOUT)
    if arm == "ddpo":
        # Once through all images is as many optimiser steps as twice through the chosen half of them.
        start = (*start[:3], replace(options, inner_epochs=1), ROLLOUT)
        trainer = DDPO(*start, DDPOSettings(copies=BRANCHING.branches, clip=BRANCHING.clip))
    else:
        directions = {"branches": "none", "forward": "forward"}
        stages = replace(STAGES, direction=directions.get(arm, "backward"))
        branching = replace(BRANCHING, branching=arm != "progressive")
        trainer = (Shuffled if arm == "shuffled" else B2DiffuRL)(*start, stages, branching)
    trainer.fit(progress=False)
    return trainer


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Return what an arm draws in the trial: one value an image, or a prompt (diversity)."""
    metrics: dict[str, Any] = {"seconds": 0.0, "calls": 0.0}
    draws = shared.base
    if arm != "base":
        began = time.perf_counter()
        trainer = trained(arm, shared, context)
        metrics = {"seconds": time.perf_counter() - began, "calls": float(trainer.policy.calls)}
        draws = draw_scored(trainer.policy, reward, shared.trial)
    metrics["match"] = draws.rewards[:, 0].tolist()
    metrics["right"] = (draws.rewards[:, 0] == 1).float().tolist()
    metrics["diversity"] = diversity(draws.images, draws.prompt_ids).tolist()
    picture = strip(to_pixels(draws.images[:8]), scale=2)
    return Measurement(metrics, images={label: write_picture(picture, context.folder / f"{arm}.png")})
