"""What the claim trains and measures: the few-step pipeline `shapes-few`, tuned to a place that no caption states.

Captions say colour, shape and a gray background and leave place and size open. PSO orders the pipeline's own images by
how near the object is to a corner; the denoising loss is given images with the object in one, at the sampler's own
timesteps. A denoiser that predicts the mean of what may be there predicts several places at once, and the fewer steps,
the more of that is left in the image: all is trained for four steps, measured at four, two and one, and judged at one.

What a mean over places looks like at 32 pixels is a fainter object rather than a softer one. So edges are measured in
absolute steps between neighbours, and the given images, which have to be as steep, by the same rule.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes.scenes import Scene
from noiseworks.bench.testbeds.shapes.tastes import raw_features, sharpness, steepness
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts import (
    decode_latents,
    encode_images,
    load_pipeline,
    sample_generators,
)
from noiseworks.kits.image_tuning import Supervised, Tuner, win_rate
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.pso.options import OFFLINE, ONLINE, Preference, Sampler
from noiseworks.pso.samplers import few_step, trained_timesteps
from noiseworks.pso.training import OnlinePSO
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SAMPLER = Sampler(4, rollout_batch=32)
STEPS = (4, 2, 1)  # that are measured; the fewest are judged
# Chosen on tuning seeds: larger steps and a weaker preference than published, which are for Stable Diffusion XL.
PREFERENCE = Preference(beta=5.0)
RATES = {"supervised": 3e-3, "shuffled": 1e-3, "pso": 1e-3}
RANK, BATCH = 8, 8  # of all arms


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
        targets: Latents of the given images [N, 4, 8, 8].
        ids: Each given image's caption.
        shown: The given images as the pipeline's autoencoder shows them [N, 3, 32, 32].
        per_prompt: Images of each caption that are measured.
        base: Number of steps -> what the untuned pipeline draws in it.
        apart: What it draws in four steps from other noise.
    """

    seed: int
    model: str
    prompts: Sequence[str]
    targets: Tensor
    ids: Tensor
    shown: Tensor
    per_prompt: int
    base: Mapping[int, Tensor]
    apart: Tensor


def cornered(images: Tensor, captions: Sequence[str] | None = None) -> Tensor:
    """Return how near to a corner the object is [n], by the smaller of its distances from the middle lines.

    Args:
        images: [n, 3, H, W] in [0, 1].
        captions: Not looked at; a reward is called with them.
    """
    return raw_features(images)[:, 3:5].abs().amin(1)


def caption_of(scene: Scene) -> str:
    """Return a scene's caption without size and place."""
    first = scene.objects[0]
    return f"a {first.color} {first.shape} on a {scene.background} background"


def wanted_scenes(seed: int, captions: int, count: int) -> tuple[list[str], list[Scene]]:
    """Return captions, and scenes of them with one object on gray, in a corner."""
    singles = [one for one in shapes.sample_scenes(50 * count + 400, seed, "test") if one.kind == "single"]
    scenes = [one for one in singles if one.background == "gray" and " " in str(one.position)]
    words = list(dict.fromkeys(caption_of(one) for one in scenes))[:captions]
    return words, [one for one in scenes if caption_of(one) in words][:count]


def prepare(seed: int, context: Context) -> Shared:
    """Choose captions and given images of a seed, and draw with the untuned pipeline."""
    sizes, model = context.settings, context.model or "testbed:shapes-few"
    prompts, scenes = wanted_scenes(seed, int(sizes["prompts"]), int(sizes["targets"]))
    pipe = few_step(load_pipeline(model, context.device), SAMPLER)
    ids = torch.tensor([prompts.index(caption_of(one)) for one in scenes])
    targets = encode_images(pipe, torch.from_numpy(shapes.render(scenes)).permute(0, 3, 1, 2))
    with torch.no_grad():
        shown = decode_latents(pipe, targets).float().cpu()
    per_prompt, texts = int(sizes["per_prompt"]), repeated(prompts, int(sizes["per_prompt"]))
    base = {steps: drawn(pipe, texts, steps, seed) for steps in STEPS}
    apart = drawn(pipe, texts, max(STEPS), seed, stream=1)
    return Shared(seed, model, prompts, targets.cpu(), ids, shown, per_prompt, base, apart)


def trained(arm: str, shared: Shared, context: Context) -> Tuner:
    """Return the trainer of an arm when it is done."""
    common = {
        "learning_rate": RATES[arm],
        "lora_rank": RANK,
        "seed": shared.seed,
        "device": context.device,
    }
    if arm == "supervised":
        steps = int(context.settings["steps"])
        data = replace(OFFLINE, max_steps=steps, batch_size=BATCH, minibatch=BATCH, **common)
        pipe = few_step(data.pipeline(shared.model), SAMPLER)
        timesteps = trained_timesteps(pipe, SAMPLER, "sampler")
        trainer = Supervised(pipe, shared.prompts, shared.targets, shared.ids, data, timesteps)
    else:
        # A round has 16 pairs and four optimiser steps, of four pairs at three timesteps each.
        rounds = replace(
            ONLINE, max_steps=int(context.settings["rounds"]), accumulate=1, minibatch=4, **common
        )
        kind = Shuffled if arm == "shuffled" else OnlinePSO
        trainer = kind(rounds.pipeline(shared.model), shared.prompts, cornered, rounds, SAMPLER, PREFERENCE)
    trainer.fit(progress=False)
    return trainer


def repeated(prompts: Sequence[str], per_prompt: int) -> list[str]:
    """Return the captions of what is measured, one an image."""
    return [text for text in prompts for _ in range(per_prompt)]


def drawn(pipe: "DiffusionPipeline", texts: Sequence[str], steps: int, seed: int, stream: int = 0) -> Tensor:
    """Return a pipeline's images of captions at a number of steps, from noise of a seed and a stream."""
    found = []
    for first in range(0, len(texts), SAMPLER.rollout_batch):
        part = list(texts[first : first + SAMPLER.rollout_batch])
        noise = sample_generators([mix64(seed, first + i, 5, stream) >> 2 for i in range(len(part))])
        call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "pt"}
        found.append(pipe(part, generator=noise, **call).images.float().cpu())
    return torch.cat(found)


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Return what an arm draws; one value an image. Names that end in _4 and _2 are of four and two steps."""
    texts = repeated(shared.prompts, shared.per_prompt)
    if arm == "given":
        texts = [shared.prompts[i] for i in shared.ids.tolist()]
        metrics, found = {}, {min(STEPS): shared.shown}
    elif arm == "base":
        metrics, found = {"seconds": 0.0}, shared.base
    else:
        began = time.perf_counter()
        pipe = trained(arm, shared, context).pipe
        metrics: dict[str, Any] = {"seconds": time.perf_counter() - began}
        found = {steps: drawn(pipe, texts, steps, shared.seed) for steps in STEPS}
    for steps, images in found.items():
        end, base = "" if steps == min(STEPS) else f"_{steps}", shared.base[steps]
        metrics |= {
            f"edges{end}": steepness(images).tolist(),
            f"untuned{end}": steepness(base).tolist(),
            f"sharpness{end}": sharpness(images).tolist(),
            f"fidelity{end}": shapes.caption_score(images, texts).tolist(),
        }
    if arm != "given":
        near, before, other = (
            cornered(one) for one in (found[max(STEPS)], shared.base[max(STEPS)], shared.apart)
        )
        metrics |= {
            "wins": win_rate(near, before).tolist(),
            "apart": win_rate(near, other).tolist(),
            "moved": (near - before).tolist(),
        }
    images = found[min(STEPS)]
    picture = strip(to_pixels(images[:: max(1, len(images) // 8)][:8]), scale=2)
    return Measurement(metrics, images={label: write_picture(picture, context.folder / f"{arm}.png")})
