"""What the claim trains and measures: the few-step pipeline `shapes-few`, tuned to a place that no caption states.

Captions leave the place open. PSO orders the pipeline's own images by how near the object is to a corner; the denoising
loss is given images with the object in one. A denoiser that predicts the mean of what may be there predicts several
corners at once. At four steps images of 32 pixels settle that all the same, at two they do not; so all is trained for
four steps, measured at four and two, and judged at two.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SAMPLER = Sampler(4, rollout_batch=32)
STEPS = (4, 2)  # that are measured; the fewest are judged
# Larger steps and a weaker pull than published, which are for Stable Diffusion XL.
PAIRING = Pairing(kappa=500.0)
PREFERENCE = Preference(beta=5.0)
LEARNING_RATE, RANK, BATCH = 3e-3, 8, 8  # of all arms


class Shuffled(OnlinePSO):
    """The control: the same images, with preferences thrown by a coin."""

    def round(self, step: int) -> Mapping[str, float]:
        """Do a round whose scores are noise."""
        generator = torch.Generator().manual_seed(self.seed(9))
        self.reward = lambda images, prompts: torch.rand(len(images), generator=generator)
        return super().round(step)


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
        base: Number of steps -> what the untuned pipeline draws in it.
    """

    seed: int
    model: str
    prompts: Sequence[str]
    targets: Tensor
    ids: Tensor
    references: Tensor
    trial: Trial
    base: Mapping[int, Draws]


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
    shared = Shared(seed, model, prompts, encode_images(pipe, pixels).cpu(), ids, own, trial, {})
    return replace(shared, base={steps: drawn(pipe, shared, steps) for steps in STEPS})


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
    if arm == "supervised":
        trainer = Supervised(few_step(pipe, SAMPLER), shared.prompts, shared.targets, shared.ids, data)
    elif arm == "offline":
        trainer = OfflinePSO(
            pipe, shared.prompts, shared.targets, shared.ids, shared.references, data, SAMPLER, PAIRING
        )
    else:
        # A round has 16 pairs and four optimiser steps, of four pairs at three timesteps each.
        rounds = replace(
            ONLINE, max_steps=int(context.settings["rounds"]), accumulate=1, minibatch=4, **common
        )
        kind = Shuffled if arm == "shuffled" else OnlinePSO
        trainer = kind(pipe, shared.prompts, cornered, rounds, SAMPLER, PREFERENCE)
    trainer.fit(progress=False)
    return trainer


def drawn(pipe: "DiffusionPipeline", shared: Shared, steps: int) -> Draws:
    """Return what a pipeline draws in the trial at a number of steps."""
    sampler = replace(SAMPLER, num_inference_steps=steps)
    return draw_scored(
        Policy(few_step(pipe, sampler), shared.prompts, sampler.rollout()), cornered, shared.trial
    )


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Return what an arm draws in the trial; one value an image. Names that end in _4 are of four steps."""
    found, seconds = shared.base, 0.0
    if arm != "base":
        began = time.perf_counter()
        pipe = trained(arm, shared, context).pipe
        seconds = time.perf_counter() - began
        found = {steps: drawn(pipe, shared, steps) for steps in STEPS}
    metrics: dict[str, Any] = {"seconds": seconds}
    for steps, draws in found.items():
        end, base = "" if steps == min(STEPS) else f"_{steps}", shared.base[steps]
        texts = [shared.prompts[i] for i in draws.prompt_ids.tolist()]
        metrics |= {
            f"sharpness{end}": sharpness(draws.images).tolist(),
            f"untuned{end}": sharpness(base.images).tolist(),
            f"wins{end}": win_rate(draws.rewards[:, 0], base.rewards[:, 0]).tolist(),
            f"fidelity{end}": shapes.caption_score(draws.images, texts).tolist(),
        }
    images = found[min(STEPS)].images
    picture = strip(to_pixels(images[:: max(1, len(images) // 8)][:8]), scale=2)
    return Measurement(metrics, images={label: write_picture(picture, context.folder / f"{arm}.png")})
