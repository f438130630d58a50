"""What the claim trains and measures: the four-step pipeline `shapes-few`, tuned to a place that no caption states.

Captions leave the place open; the targets are images of them with the object in one of the four corners. A denoiser
that predicts the mean of what may be there predicts several corners at once, which a few steps cannot settle.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes.scenes import Scene
from noiseworks.bench.testbeds.shapes.tastes import raw_features, sharpness
from noiseworks.kits.diffusers_hosts import encode_images, load_pipeline
from noiseworks.kits.image_tuning import Draws, Policy, Supervised, Trial, Tuner, draw_scored, win_rate
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.pso.options import OFFLINE, ONLINE, Pairing, Preference, Sampler
from noiseworks.pso.samplers import few_step
from noiseworks.pso.training import OfflinePSO, OnlinePSO, own_images
from torch import Tensor

SAMPLER = Sampler(4, rollout_batch=32)
# Larger steps and a weaker pull than published, which are for Stable Diffusion XL.
PAIRING = Pairing(kappa=500.0)
PREFERENCE = Preference(beta=5.0)
LEARNING_RATE, RANK, BATCH = 1e-3, 8, 8


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        seed: The seed.
        model: The few-step pipeline.
        prompts: Captions, each once.
        targets: Latents of the images to go to [N, 4, 8, 8].
        ids: Each target's caption.
        references: Latents of the untuned pipeline's images of the same captions [N, 4, 8, 8].
        trial: What is drawn to measure.
        base: What the untuned pipeline draws in it.
    """

    seed: int
    model: str
    prompts: Sequence[str]
    targets: Tensor
    ids: Tensor
    references: Tensor
    trial: Trial
    base: Draws


def cornered(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how near to a corner the object is [n], by the smaller of its distances from the middle lines."""
    return raw_features(images)[:, 3:5].abs().amin(1)


def without_place(scene: Scene) -> str:
    """Return a scene's caption without the place of its object."""
    return shapes.caption(replace(scene, position="center")).replace(" at the center", "")


def wanted_scenes(seed: int, captions: int, count: int) -> tuple[list[str], list[Scene]]:
    """Return captions without a place, and scenes of them with the object in a corner, spread over the captions."""
    drawn = [one for one in shapes.sample_scenes(400 * captions, seed, "test") if one.kind == "single"]
    corners: dict[str, list[Scene]] = {}
    for one in drawn:
        if " " in one.position:
            corners.setdefault(without_place(one), []).append(one)
    words = list(corners)[:captions]
    turns = range(max(len(one) for one in corners.values()))
    scenes = [corners[text][turn] for turn in turns for text in words if turn < len(corners[text])]
    return words, scenes[:count]


def prepare(seed: int, context: Context) -> Shared:
    """Choose captions and targets of a seed, and draw reference images and the trial with the untuned pipeline."""
    sizes, model = context.settings, context.model or "testbed:shapes-few"
    prompts, scenes = wanted_scenes(seed, int(sizes["prompts"]), int(sizes["targets"]))
    pipe = few_step(load_pipeline(model, context.device), SAMPLER)
    policy = Policy(pipe, prompts, SAMPLER.rollout())
    ids = policy.ids_of([without_place(scene) for scene in scenes])
    pixels = torch.from_numpy(shapes.render(scenes)).permute(0, 3, 1, 2)
    trial = Trial(per_prompt=int(sizes["per_prompt"]), trial_seed=seed * 1000)
    own = own_images(policy, ids, seed)
    base = draw_scored(policy, cornered, trial)
    return Shared(seed, model, prompts, encode_images(pipe, pixels).cpu(), ids, own, trial, base)


def trained(arm: str, shared: Shared, context: Context, **changes: Any) -> Tuner:
    """Return the trainer of an arm when it is done."""
    steps, seed = int(context.settings["steps"]), shared.seed
    common = {
        "learning_rate": LEARNING_RATE,
        "lora_rank": RANK,
        "seed": seed,
        "device": context.device,
    } | changes
    data = replace(OFFLINE, max_steps=steps, batch_size=BATCH, minibatch=BATCH, **common)
    pipe = data.pipeline(shared.model)
    if arm == "online":
        # A round has 16 pairs, 12 passes of 4 of them and two optimiser steps; so a sixteenth of the steps.
        rounds = replace(ONLINE, max_steps=max(1, steps // 16), batch_size=16, minibatch=4, **common)
        trainer = OnlinePSO(pipe, shared.prompts, cornered, rounds, SAMPLER, PREFERENCE)
    elif arm == "supervised":
        trainer = Supervised(few_step(pipe, SAMPLER), shared.prompts, shared.targets, shared.ids, data)
    else:
        targets, references = shared.targets, shared.references
        if arm == "shuffled":
            coin = torch.rand(len(targets), generator=torch.Generator().manual_seed(seed)) < 0.5
            swap = coin[:, None, None, None]
            targets, references = (
                torch.where(swap, references, targets),
                torch.where(swap, targets, references),
            )
        trainer = OfflinePSO(pipe, shared.prompts, targets, shared.ids, references, data, SAMPLER, PAIRING)
    trainer.fit(progress=False)
    return trainer


def measured(arm: str, label: str, shared: Shared, context: Context, **changes: Any) -> Measurement:
    """Return what an arm draws in the trial at four steps; one value an image."""
    draws, seconds = shared.base, 0.0
    if arm != "base":
        began = time.perf_counter()
        trainer = trained(arm, shared, context, **changes)
        seconds = time.perf_counter() - began
        policy = Policy(trainer.pipe, shared.prompts, SAMPLER.rollout())
        draws = draw_scored(policy, cornered, shared.trial)
    texts = [shared.prompts[i] for i in draws.prompt_ids.tolist()]
    metrics = {
        "sharpness": sharpness(draws.images).tolist(),
        "untuned_sharpness": sharpness(shared.base.images).tolist(),
        "wins": win_rate(draws.rewards[:, 0], shared.base.rewards[:, 0]).tolist(),
        "corner": draws.rewards[:, 0].tolist(),
        "fidelity": shapes.caption_score(draws.images, texts).tolist(),
        "seconds": seconds,
    }
    picture = strip(to_pixels(draws.images[:: max(1, len(draws.images) // 8)][:8]), scale=2)
    return Measurement(metrics, images={label: write_picture(picture, context.folder / f"{arm}.png")})
