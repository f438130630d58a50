"""What the claim trains and measures on `shapes`: masks beside LoRA of as many numbers, and optimised masks.

Training scenes are drawn under a seed of their own; validation noises and captions are those of test scenes. The reader
that images are optimised for is trained here on rendered scenes, and the oracle that judges has no part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes.reading import ABSENT, VALUES, statements
from noiseworks.kits.diffusers_hosts import Sampling, decode_latents, denoiser_of, load_pipeline
from noiseworks.kits.image_tuning import add_lora
from noiseworks.kits.image_tuning.denoising import DenoisingError
from noiseworks.kits.image_tuning.options import Rollout
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.maskunet.comparing import best_of, draw_images, equal_passes
from noiseworks.maskunet.masking import MaskNet
from noiseworks.maskunet.optimising import optimise_masks
from noiseworks.maskunet.options import MaskConfig, RandomMasks, RewardSchedule, Training
from noiseworks.maskunet.random_masks import attach_random
from noiseworks.maskunet.training import (
    Examples,
    encode_images,
    train_masks,
    trainable_count,
    validation_losses,
)
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MODEL, GUIDANCE_SCALE, STEPS, SHOWN = "testbed:shapes", 3.0, 15, 8
TIMESTEPS = (100, 300, 500, 700, 900)  # of the validation loss
# Chosen on tuning seeds, each arm by itself. At a logit of 1 6.6 % of the weights are off at the start, but at 5 none
# ever changes within these steps. LoRA at 1e-2 lowers the loss on one seed and raises it on others.
MASKS, RATE, LORA_RATE, BATCH = MaskConfig(init_logit=1.0), 3e-2, 3e-3, 16
# About as many calls as the released schedule, in which the first steps, where a scene's layout is decided, have random
# masks only; chosen on a tuning seed.
SCHEDULE = RewardSchedule(warm_steps=0, iterations=6, mask_rate=0.03)


@dataclass(eq=False)
class Shared:
    """What the arms of a seed share."""

    seed: int
    pipe: "DiffusionPipeline"
    examples: Examples
    held: tuple[Tensor, Policy, Tensor]
    scenes: Sequence[Any]
    reader: "SceneReader"
    parameters: int


class SceneReader(nn.Module):
    """Reads what captions state from images [n, 3, 32, 32]: a scorer with gradients that is not the oracle."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        layers: list[nn.Module] = []
        for ins, outs in pairwise(widths):
            layers += [nn.Conv2d(ins, outs, 3, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 96), nn.SiLU())
        self.heads = nn.Linear(96, sum(map(len, VALUES)))

    def losses(self, images: Tensor, stated: Tensor) -> Tensor:
        """Return each image's cross-entropy, a mean over what is stated, [n]."""
        if images.shape[-1] != 32:
            images = F.interpolate(images, size=(32, 32), mode="area")
        logits = self.heads(self.body(2 * images - 1)).split([len(values) for values in VALUES], dim=1)
        columns = [
            F.cross_entropy(one, column, ignore_index=ABSENT, reduction="none")
            for one, column in zip(logits, stated.unbind(1), strict=True)
        ]
        return torch.stack(columns).sum(0) / (stated != ABSENT).sum(1)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the mean log-probability of what the prompts state, [n]."""
        stated = statements([shapes.read_caption(prompt)[0] for prompt in prompts])
        return -self.losses(images, stated.to(images.device))


def train_reader(pipe: "DiffusionPipeline", scenes: int, steps: int, seed: int) -> SceneReader:
    """Train a reader on scenes as they are drawn and as the autoencoder shows them, under a little noise."""
    drawn = shapes.sample_scenes(scenes, seed, "train")
    images = torch.from_numpy(shapes.render(drawn)).permute(0, 3, 1, 2)
    with torch.no_grad():
        coded = torch.cat(
            [
                decode_latents(pipe, part.to(pipe.device)).cpu()
                for part in encode_images(pipe, images).split(64)
            ]
        )
    images, stated = torch.cat([images, coded]), statements(drawn).repeat(2, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SceneReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        noisy = images[rows] + 0.05 * torch.randn(64, 3, 32, 32, generator=generator)
        loss = reader.losses(noisy, stated[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval().requires_grad_(False)


def examples_of(pipe: "DiffusionPipeline", count: int, seed: int) -> Examples:
    """Return training scenes with their complete captions, encoded."""
    scenes = shapes.sample_scenes(count, seed, "train")
    captions = [shapes.caption(scene) for scene in scenes]
    prompts = tuple(dict.fromkeys(captions))
    number = {prompt: k for k, prompt in enumerate(prompts)}
    latents = encode_images(pipe, torch.from_numpy(shapes.render(scenes)).permute(0, 3, 1, 2))
    return Examples(latents, torch.tensor([number[one] for one in captions]), prompts)


def prepare(seed: int, context: Context) -> Shared:
    """Load the pipeline, encode scenes, train the reader, and count the masks' numbers."""
    sizes = context.settings
    pipe = load_pipeline(context.model or MODEL, context.device, families=("sd",))
    context.progress(0, 8, "encoding scenes")
    examples = examples_of(pipe, sizes["images"], seed + 1)
    scenes = shapes.sample_scenes(sizes["prompts"], seed, "test")
    held = shapes.sample_scenes(sizes["held"], seed + 2, "test")
    captions = [shapes.caption(scene) for scene in held]
    policy = Policy(pipe, captions, Rollout(num_inference_steps=2, guidance_scale=1.0))
    latents = encode_images(pipe, torch.from_numpy(shapes.render(held)).permute(0, 3, 1, 2))
    context.progress(1, 8, "training the reader")
    reader = train_reader(pipe, sizes["reader_scenes"], sizes["reader_steps"], seed + 3)
    count = trainable_count(MaskNet.of(pipe, MASKS))
    return Shared(
        seed,
        pipe,
        examples,
        (latents, policy, policy.ids_of(captions)),
        scenes,
        reader.to(pipe.device),
        count,
    )


def lora_rank(pipe: "DiffusionPipeline", parameters: int) -> int:
    """Return the rank whose adapters on all attention projections have closest to that many numbers."""
    model = denoiser_of(pipe)
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    one = sum(
        m.in_features + m.out_features
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.endswith(ends)
    )
    return max(1, round(parameters / one))


def train_weights(shared: Shared, weights: Sequence[nn.Parameter], steps: int) -> None:
    """Train adapters with the same loss, images, order and noise as the masks."""
    policy = Policy(shared.pipe, shared.examples.prompts, Rollout(num_inference_steps=2, guidance_scale=1.0))
    error, optimizer = DenoisingError(policy), torch.optim.AdamW(weights, lr=LORA_RATE)
    batches = shared.examples.batches(BATCH, shared.seed).endless()
    for step in range(steps):
        batch, generator = next(batches), torch.Generator().manual_seed(shared.seed * 100_000 + step)
        timesteps = error.draw_timesteps(BATCH, generator)
        noise = torch.randn(batch["latents"].shape, generator=generator)
        loss = error(batch["latents"], batch["ids"], timesteps, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def sampling_of(shared: Shared) -> Sampling:
    """Return how all arms draw."""
    return Sampling(STEPS, GUIDANCE_SCALE, batch_size=16, seed=shared.seed * 1000)


def oracle_scores(images: Tensor, scenes: Sequence[Any]) -> list[float]:
    """Return the share of requested attributes that the oracle finds, a value an image."""
    return shapes.score(images.permute(0, 2, 3, 1).numpy(), scenes).tolist()


def trained_arm(shared: Shared, images: Tensor) -> dict[str, Any]:
    """Return validation loss and oracle score of the pipeline as it is now."""
    latents, policy, ids = shared.held
    losses = validation_losses(policy, latents, ids, TIMESTEPS, shared.seed)
    return {"loss": losses.tolist(), "score": oracle_scores(images, shared.scenes)}


def measure(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Train or optimise one arm and measure it; the pipeline is as before in the end."""
    sizes, pipe = context.settings, shared.pipe
    few = shared.scenes[: sizes["optimised"]]
    captions, drawn = [shapes.caption(scene) for scene in shared.scenes], sampling_of(shared)
    texts, scorers = captions[: len(few)], [(shared.reader, 1.0)]
    context.progress(2, 8, label)
    notes: tuple[str, ...] = ()
    if arm == "best_of":
        count = equal_passes(SCHEDULE, STEPS)
        images = best_of(pipe, texts, scorers, drawn, count)
        metrics = {"few": oracle_scores(images, few), "calls": float(STEPS * count)}
    elif arm == "optimised":
        found = optimise_masks(pipe, texts, scorers, SCHEDULE, drawn)
        images = found.images
        metrics = {"few": oracle_scores(images, few), "calls": float(found.calls)}
        notes = (f"Reward at the first and at the last step: {_ends(found.rewards)}.",)
    elif arm == "random":
        with attach_random(pipe, RandomMasks(keep=0.95, random_seed=shared.seed)):
            images = draw_images(pipe, captions, drawn)
        scores = oracle_scores(images, shared.scenes)
        metrics = {"score": scores, "few": scores[: len(few)]}
    elif arm == "masks":
        training = Training(
            max_steps=sizes["steps"], batch_size=BATCH, learning_rate=RATE, seed=shared.seed, ema=0.98,
            device="cpu" if context.device == "cpu" else "auto",
        )  # fmt: skip
        net = train_masks(pipe, shared.examples, MASKS, training, progress=False)
        with net.attach(pipe):
            images = draw_images(pipe, captions, drawn)
            metrics = trained_arm(shared, images) | {"parameters": float(shared.parameters)}
    elif arm == "lora":
        rank = lora_rank(pipe, shared.parameters)
        weights = add_lora(denoiser_of(pipe), rank, shared.seed)
        try:
            train_weights(shared, list(weights.values()), sizes["steps"])
            images = draw_images(pipe, captions, drawn)
            count = float(sum(p.numel() for p in weights.values()))
            metrics = trained_arm(shared, images) | {"parameters": count}
        finally:
            pipe.unload_lora_weights()
    else:
        images = draw_images(pipe, captions, drawn)
        metrics = trained_arm(shared, images) | {"few": oracle_scores(images[: len(few)], few)}
        metrics |= {"calls": float(STEPS)}
    picture = write_picture(strip(to_pixels(images[:SHOWN]), scale=2), context.folder / f"{arm}.png")
    return Measurement(metrics, images={label: picture}, notes=notes)


def _ends(rewards: Sequence[Tensor]) -> str:
    return " and ".join(f"{float(rewards[k][-1].mean()):.3f}" for k in (0, -1))
