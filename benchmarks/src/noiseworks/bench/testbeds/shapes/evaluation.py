"""What the `shapes` models' cards state: the oracle's reading of reconstructions and of samples."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.shapes.architectures import CLASSES, T5_TOKENS
from noiseworks.bench.testbeds.shapes.oracle import read, score
from noiseworks.bench.testbeds.shapes.scenes import caption, render, sample_scenes

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline

STEPS = 20
GUIDANCE = 4.0
CARD_GUIDANCE = (1.0, 2.0, 4.0, 7.5)
BATCH = 50

# --- first stage --------------------------------------------------------------------------------------------


def load_vae(folder: Path) -> "AutoencoderKL":
    """Return a published autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder)


@torch.no_grad()
def reconstruct(vae: "AutoencoderKL", images: np.ndarray) -> np.ndarray:
    """Return an autoencoder's reconstructions of images [n, 32, 32, 3] in [0, 1], from posterior means."""
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).mul(2).sub(1).split(100)
    return _images(torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in parts]))


@torch.no_grad()
def decode_noise(vae: "AutoencoderKL", n: int, seed: int) -> np.ndarray:
    """Return decoded standard normal latents: images that show nothing in particular."""
    latents = (
        torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) / vae.config.scaling_factor
    )
    return _images(torch.cat([vae.decode(part).sample for part in latents.split(100)]))


def _images(decoded: torch.Tensor) -> np.ndarray:
    return (decoded.permute(0, 2, 3, 1).numpy() / 2 + 0.5).clip(0, 1)


def psnr(decoded: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB of each image, [n]."""
    return 10 * np.log10(1 / ((decoded.astype(np.float64) - images) ** 2).mean((1, 2, 3)))


def tune_vae(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of attributes read right from reconstructions of `test` scenes, and their PSNR."""
    scenes = sample_scenes(n, seed, "test")
    images = render(scenes)
    decoded = reconstruct(load_vae(folder), images)
    return {"share_right": float(score(decoded, scenes).mean()), "psnr": float(psnr(decoded, images).mean())}


def measure_vae(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures of an autoencoder.

    Args:
        folder: The autoencoder's folder.
        n: Scenes of each of the splits `test` and `heldout`.
        seed: Seed of the scenes.
    """
    vae, figures = load_vae(folder), {}
    for split in ("test", "heldout"):
        scenes = sample_scenes(n, seed, split)
        images = render(scenes)
        decoded = reconstruct(vae, images)
        figures[f"attributes right, clean renders, {split}"] = figure(score(images, scenes))
        figures[f"attributes right, reconstructions, {split}"] = figure(score(decoded, scenes))
        figures[f"PSNR in dB, {split}"] = figure(psnr(decoded, images))
    figures["attributes right, decoded noise"] = figure(score(decode_noise(vae, n, seed), scenes))
    return figures


# --- pipelines ----------------------------------------------------------------------------------------------


def load(folder: Path) -> "DiffusionPipeline":
    """Return a published pipeline without its progress bar."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: "DiffusionPipeline",
    prompts: Sequence[str] | Sequence[int],
    guidance_scale: float,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> np.ndarray:
    """Return one image a prompt (or class), [n, 32, 32, 3] in [0, 1]; sample i uses the seed `seed + i`."""
    short = {"max_sequence_length": T5_TOKENS}
    extra: dict[str, Any] = (
        short if "max_sequence_length" in inspect.signature(pipeline.__call__).parameters else {}
    )
    images = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="np",
            **extra,
        )
        images.append(output.images)
    return np.concatenate(images).astype(np.float32)


def tune_text_to_image(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of requested attributes right at guidance 4 and without, on clean captions."""
    pipeline, scenes = load(folder), sample_scenes(n, seed, "test")
    prompts = [caption(scene) for scene in scenes]
    return {
        name: float(score(sample(pipeline, prompts, guidance, seed=seed), scenes).mean())
        for name, guidance in (("share_right", GUIDANCE), ("share_right_unguided", 1.0))
    }


def measure_text_to_image(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures of a text-to-image pipeline, on clean captions at 20 steps.

    Args:
        folder: The pipeline's folder.
        n: Prompts.
        seed: Seed of the prompts and the samples.
    """
    pipeline, scenes, figures = load(folder), sample_scenes(n, seed, "test"), {}
    prompts = [caption(scene) for scene in scenes]
    for guidance in CARD_GUIDANCE:
        images = sample(pipeline, prompts, guidance, seed=seed)
        figures[f"attributes right, guidance {guidance:g}"] = figure(score(images, scenes))
        if guidance == GUIDANCE:
            other = [*scenes[1:], scenes[0]]
            figures["attributes right, prompts of other images"] = figure(score(images, other))
            for kind in sorted({scene.kind for scene in scenes}):
                rows = [i for i, scene in enumerate(scenes) if scene.kind == kind]
                share = score(images[rows], [scenes[i] for i in rows])
                figures[f"attributes right, guidance {guidance:g}, {kind}"] = figure(share)
    unseen = sample_scenes(n, seed, "heldout")
    images = sample(pipeline, [caption(scene) for scene in unseen], GUIDANCE, seed=seed)
    figures[f"attributes right, guidance {GUIDANCE:g}, unseen combinations"] = figure(score(images, unseen))
    figures["attributes right, decoded noise"] = figure(score(decode_noise(pipeline.vae, n, seed), scenes))
    return figures


def tune_class_to_image(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of samples of right shape, colour and count at guidance 4 and without guidance."""
    pipeline, labels = load(folder), spread_labels(n)
    return {
        name: float(class_score(sample(pipeline, labels, guidance, seed=seed), labels).mean())
        for name, guidance in (("share_right", GUIDANCE), ("share_right_unguided", 1.0))
    }


def measure_class_to_image(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures of a class-to-image pipeline at 20 steps.

    Args:
        folder: The pipeline's folder.
        n: Samples, spread over the classes.
        seed: Seed of the samples.
    """
    pipeline, labels, figures = load(folder), spread_labels(n), {}
    for guidance in CARD_GUIDANCE:
        images = sample(pipeline, labels, guidance, seed=seed)
        figures[f"attributes right, guidance {guidance:g}"] = figure(class_score(images, labels))
    other = [*labels[1:], labels[0]]
    figures["attributes right, classes of other images"] = figure(class_score(images, other))
    figures["attributes right, decoded noise"] = figure(
        class_score(decode_noise(pipeline.vae, n, seed), labels)
    )
    return figures


def spread_labels(n: int) -> list[int]:
    """Return n class labels that go round all classes."""
    return [i % len(CLASSES) for i in range(n)]


def class_score(images: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return the share of shape, colour and count (one object) right in each image, float64 [n]."""
    shares = []
    for reading, label in zip(read(images), labels, strict=True):
        color, shape = CLASSES[label].split()
        found = reading.objects
        rights = (
            len(found) == 1,
            bool(found) and found[0].color == color,
            bool(found) and found[0].shape == shape,
        )
        shares.append(float(np.mean(rights)))
    return np.array(shares)
