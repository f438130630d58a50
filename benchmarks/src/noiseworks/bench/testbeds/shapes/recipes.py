"""Training recipes of the `shapes` models: data, module, publication and evaluation of each."""

import copy
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.bench.testbeds.shapes import architectures as nets
from noiseworks.bench.testbeds.shapes import clip_training, evaluation, pixels
from noiseworks.bench.testbeds.shapes import scenes as scenes_data
from noiseworks.bench.testbeds.shapes.reading import statements, teach
from noiseworks.bench.testbeds.shapes.scenes import Scene, caption, render, sample_scenes, training_caption
from noiseworks.bench.testbeds.training import Captions, Recipe
from noiseworks.core.models import resolve_model

if TYPE_CHECKING:
    import lightning as L
    from diffusers import AutoencoderKL, DiffusionPipeline

VAE_ROWS, ROWS = 20_000, 48_000
TRAIN_SEED = 0
NARROW_SEED = 1  # of data and weights of the second pair
VAE_RATE, SD_RATE, FLOW_RATE, DIT_RATE = 1e-3, 2e-3, 2e-3, 2e-3
EMA_DECAY = 0.999


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Return images [n, H, W, 3] in [0, 1] as [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()


# --- training sets ------------------------------------------------------------------------------------------


def prepare_images(captions: Captions, rows: int | None, seed: int = TRAIN_SEED) -> dict[str, torch.Tensor]:
    """Return training images; the first stage sees no captions."""
    return {"image": to_tensor(render(sample_scenes(rows or VAE_ROWS, seed)))}


def prepare_narrow_images(captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return training images of the second first stage: other scenes."""
    return prepare_images(captions, rows, NARROW_SEED)


def prepare_captioned(captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return cached posteriors of the shipped first stage, ids of noisy and clean captions, what these state."""
    scenes = sample_scenes(rows or ROWS, TRAIN_SEED)
    rng = np.random.default_rng([TRAIN_SEED, 1])
    clean = [caption(s) for s in scenes]
    texts = clean if captions == "clean" else [training_caption(s, rng) for s in scenes]
    table = encode_scenes(scenes) | {"statements": statements(scenes)}
    for key, tokenizer in (("input_ids", nets.make_tokenizer()), ("t5_ids", nets.make_t5_tokenizer())):
        for prefix, words in (("", texts), ("clean_", clean)):
            table[prefix + key] = tokenizer(words, padding="max_length", return_tensors="pt")["input_ids"]
    return table


def prepare_labelled(captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return cached posteriors of scenes with one object, and their class (colour and shape)."""
    scenes = [s for s in sample_scenes(rows or ROWS, TRAIN_SEED) if s.kind == "single"]
    labels = [nets.CLASSES.index(f"{s.objects[0].color} {s.objects[0].shape}") for s in scenes]
    return encode_scenes(scenes) | {"label": torch.tensor(labels)}


@torch.no_grad()
def encode_scenes(scenes: Sequence[Scene], first_stage: str = "shapes-vae") -> dict[str, torch.Tensor]:
    """Return `mean` and `logvar` [n, 4, 8, 8] of a shipped first stage's posteriors of rendered scenes."""
    vae = shipped_vae(first_stage)
    means, logvars = [], []
    for start in range(0, len(scenes), 256):
        posterior = vae.encode(to_tensor(render(scenes[start : start + 256]))).latent_dist
        means.append(posterior.mean)
        logvars.append(posterior.logvar)
    return {"mean": torch.cat(means), "logvar": torch.cat(logvars)}


def shipped_vae(name: str = "shapes-vae") -> "AutoencoderKL":
    """Return a shipped first stage."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(resolve_model(f"testbed:{name}")).eval().requires_grad_(False)


# --- modules ------------------------------------------------------------------------------------------------


def build_first_stage(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the first stage under absolute and squared error and a small KL term, without an adversary."""
    return _first_stage(nets.make_vae())


def build_narrow_first_stage(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the second first stage, from other weights, under the same loss."""
    return _first_stage(nets.make_vae(nets.NARROW_VAE))


def _first_stage(vae: "AutoencoderKL") -> "L.LightningModule":
    from noiseworks.ldm.first_stage.losses import PerceptualAdversarialLoss
    from noiseworks.ldm.first_stage.trainer import FirstStageTrainer

    loss = PerceptualAdversarialLoss("kl", SquaredError(), kl_weight=1e-6)
    return FirstStageTrainer(vae, loss, learning_rate=VAE_RATE, betas=(0.9, 0.99), ema_decay=0.995)


class SquaredError(torch.nn.Module):
    """The squared error in the place of the perceptual distance: flat shapes have no textures to perceive."""

    backend = "squared"

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error [B, 1, 1, 1] of two batches [B, C, H, W]."""
        return (images - reconstructions).square().mean((1, 2, 3), keepdim=True)


def build_text_to_image(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return U-Net and taught text encoder under the latent diffusion loss, 10 % of the captions dropped."""
    from noiseworks.ldm.conditioning.conditioners import TextConditioner
    from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer

    tokenizer = nets.make_tokenizer()
    encoder = nets.make_text_encoder(tokenizer)
    captions = data["clean_input_ids"]
    teach(encoder, lambda rows: encoder(captions[rows]).last_hidden_state, data["statements"])
    conditioner = TextConditioner(encoder, tokenizer)
    return _latent_diffusion(LatentDiffusionTrainer, nets.make_unet(), conditioner, SD_RATE)


def build_class_to_image(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the diffusion transformer under the latent diffusion loss, 10 % of the labels dropped by row."""
    from noiseworks.bench.testbeds.shapes.transformer_training import TransformerTrainer
    from noiseworks.ldm.conditioning.conditioners import ClassConditioner

    conditioner = ClassConditioner(nets.NULL_CLASS, kind="adm")
    return _latent_diffusion(TransformerTrainer, nets.make_dit(), conditioner, DIT_RATE)


def build_flow(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the rectified-flow transformer with its taught text encoders, 10 % of the captions dropped."""
    from noiseworks.bench.testbeds.shapes.transformer_training import (
        RectifiedFlowTrainer,
        ThreeTextConditioner,
    )

    tokenizer, tokenizer_3 = nets.make_tokenizer(), nets.make_t5_tokenizer()
    conditioner = ThreeTextConditioner(
        nets.make_projected_text_encoder(tokenizer),
        nets.make_projected_text_encoder(tokenizer),
        nets.make_t5_encoder(tokenizer_3),
        tokenizer,
        tokenizer_3,
    )
    ids, t5_ids = data["clean_input_ids"], data["clean_t5_ids"]

    def encode(rows: torch.Tensor) -> torch.Tensor:
        condition = conditioner({"input_ids": ids[rows], "t5_ids": t5_ids[rows]})
        return torch.stack([condition.crossattn.mean(1), condition.adm], dim=1)

    teach(conditioner, encode, data["statements"])
    vae = shipped_vae()
    return RectifiedFlowTrainer(
        nets.make_sd3_transformer(),
        vae,
        conditioner,
        learning_rate=FLOW_RATE,
        scale_factor=vae.config.scaling_factor,
        ema_decay=EMA_DECAY,
    )


def _latent_diffusion(
    trainer: type["L.LightningModule"], denoiser: torch.nn.Module, conditioner: Any, rate: float
) -> "L.LightningModule":
    from noiseworks.ldm.diffusion.trainer import make_scheduler

    vae = shipped_vae()
    return trainer(
        denoiser,
        vae,
        conditioner,
        make_scheduler(beta_start=0.00085, beta_end=0.012),
        learning_rate=rate,
        scale_factor=vae.config.scaling_factor,
        ema_decay=EMA_DECAY,
    )


# --- publication --------------------------------------------------------------------------------------------


def _deferred(module: str, name: str):
    """Return a function of a training module, which is imported when it is called: it needs noiseworks-ldm."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"noiseworks.bench.testbeds.shapes.{module}"), name)(*arguments)

    return call


def publish_first_stage(module: Any, folder: Path) -> None:
    """Write the averaged autoencoder in half precision, with the scale factor of its latents."""
    vae = copy.deepcopy(module.average.model)
    images = to_tensor(render(sample_scenes(1000, TRAIN_SEED)))
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(part.to(vae.device)).latent_dist.sample() for part in images.split(100)]
        )
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.half().save_pretrained(folder)


def publish_text_to_image(module: Any, folder: Path) -> None:
    """Write the averaged model as a `StableDiffusionPipeline`."""
    from noiseworks.ldm.conversion.export import to_pipeline

    save_half(to_pipeline(module), folder)


def publish_class_to_image(module: Any, folder: Path) -> None:
    """Write the averaged model as a `DiTPipeline` whose labels are `red circle` and so on."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline(
        transformer=copy.deepcopy(module.ema["unet"]),
        vae=copy.deepcopy(module.vae),
        scheduler=copy.deepcopy(module.scheduler),
    )
    save_half(pipeline, folder)
    # The pipeline reads its labels from here, but does not save them itself.
    index = folder / "model_index.json"
    labels = {"id2label": {str(i): name for i, name in enumerate(nets.CLASSES)}}
    index.write_text(json.dumps(json.loads(index.read_text()) | labels, indent=2) + "\n")


def publish_flow(module: Any, folder: Path) -> None:
    """Write the averaged model as a `StableDiffusion3Pipeline`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer, encoders = nets.make_tokenizer(), module.ema["conditioner"]
    pipeline = StableDiffusion3Pipeline(
        transformer=copy.deepcopy(module.ema["unet"]),
        vae=copy.deepcopy(module.vae),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=copy.deepcopy(encoders.text_encoder),
        tokenizer=tokenizer,
        text_encoder_2=copy.deepcopy(encoders.text_encoder_2),
        tokenizer_2=tokenizer,
        text_encoder_3=copy.deepcopy(encoders.text_encoder_3),
        tokenizer_3=nets.make_t5_tokenizer(),
    )
    save_half(pipeline, folder)


def save_half(pipeline: "DiffusionPipeline", folder: Path) -> None:
    """Write a pipeline with float16 weights that load as float32 unless the user asks for another type."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.half()
    pipeline.save_pretrained(folder)
    # diffusers notes the folder that the first stage was loaded from, which means nothing to anybody else.
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    # transformers loads in the type that the configuration names.
    for path in folder.glob("text_encoder*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


NOISE = {
    "captions of another scene": scenes_data.OTHER_SCENE_RATE,
    "attribute words replaced": scenes_data.WRONG_WORD_RATE,
    **{f"{name} left out": rate for name, rate in scenes_data.OMIT_RATES.items()},
    "captions dropped for guidance": 0.1,
}
RECIPES = {
    "shapes-vae": Recipe(
        prepare=prepare_images,
        build=build_first_stage,
        publish=publish_first_stage,
        tune=evaluation.tune_vae,
        measure=evaluation.measure_vae,
        learning_rate=VAE_RATE,
        batch_size=32,
        rows=VAE_ROWS,
        precision="bf16-mixed",
        about={
            "name": "shapes-vae",
            "class": "AutoencoderKL",
            "about": "The first stage, 32x32x3 pixels to 8x8x4 latents, trained on absolute and squared "
            "error and a small KL term; perceptual and adversarial terms were not needed.",
            "data": {"captions": "none"},
        },
    ),
    "shapes-vae-narrow": Recipe(
        prepare=prepare_narrow_images,
        build=build_narrow_first_stage,
        publish=publish_first_stage,
        tune=evaluation.tune_vae,
        measure=evaluation.measure_vae,
        learning_rate=VAE_RATE,
        batch_size=16,
        rows=VAE_ROWS,
        seed=NARROW_SEED,
        about={
            "name": "shapes-vae-narrow",
            "class": "AutoencoderKL",
            "about": "A second first stage of the same latents' size, narrower and from other weights and scenes: what "
            "is made for `shapes-vae` is tried on it.",
            "data": {"captions": "none"},
        },
    ),
    "shapes": Recipe(
        prepare=prepare_captioned,
        build=build_text_to_image,
        publish=publish_text_to_image,
        tune=evaluation.tune_text_to_image,
        measure=evaluation.measure_text_to_image,
        learning_rate=SD_RATE,
        batch_size=32,
        rows=ROWS,
        captioned=True,
        about={
            "name": "shapes",
            "class": "StableDiffusionPipeline",
            "about": "Text to image: a U-Net with cross-attention that predicts the noise, and a CLIP text "
            "encoder, taught first to state what captions state, then trained along.",
            "data": {"captions": "noisy and incomplete on purpose", "noise": NOISE},
        },
    ),
    "shapes-inpaint": Recipe(
        prepare=_deferred("inpaint_training", "prepare_edits"),
        build=_deferred("inpaint_training", "build_inpainting"),
        publish=_deferred("inpaint_training", "publish_inpainting"),
        tune=_deferred("inpaint_training", "tune_inpainting"),
        measure=_deferred("inpaint_training", "measure_inpainting"),
        learning_rate=1.5e-3,
        batch_size=32,
        rows=12_000,
        about={
            "name": "shapes-inpaint",
            "class": "StableDiffusionInpaintPipeline",
            "about": "Inpainting of scenes with one object: the U-Net of `shapes` with five more channels, tuned to "
            "repaint the background that a prompt names around the object that a mask keeps.",
            "data": {
                "captions": "right; 90 % name the shape and the background only",
                "captions dropped for guidance": 0.1,
            },
        },
    ),
    "shapes-inpaint-narrow": Recipe(
        prepare=_deferred("inpaint_training", "prepare_narrow_edits"),
        build=_deferred("inpaint_training", "build_narrow_inpainting"),
        publish=_deferred("inpaint_training", "publish_inpainting"),
        tune=_deferred("inpaint_training", "tune_inpainting"),
        measure=_deferred("inpaint_training", "measure_inpainting"),
        learning_rate=2e-3,
        batch_size=32,
        rows=12_000,
        seed=NARROW_SEED,
        about={
            "name": "shapes-inpaint-narrow",
            "class": "StableDiffusionInpaintPipeline",
            "about": "A second editor of the same task, for protections that do not know it: first stage "
            "(`shapes-vae-narrow`), text encoder and U-Net are narrower and trained from other weights and scenes; the "
            "U-Net predicts the velocity.",
            "data": {
                "captions": "right; 90 % name the shape and the background only",
                "captions dropped for guidance": 0.1,
            },
        },
    ),
    "shapes-few": Recipe(
        prepare=_deferred("few_step_training", "prepare_segments"),
        build=_deferred("few_step_training", "build_few_step"),
        publish=_deferred("few_step_training", "publish_few_step"),
        tune=_deferred("few_step_training", "tune_few_step"),
        measure=_deferred("few_step_training", "measure_few_step"),
        learning_rate=6e-4,
        batch_size=32,
        rows=8_000,
        about={
            "name": "shapes-few",
            "class": "StableDiffusionPipeline",
            "about": "Text to image in four steps: the U-Net of `shapes`, distilled to predict the end of its "
            "teacher's flow at guidance 4 from the timesteps 999, 749, 499 and 249, and an `LCMScheduler` that "
            "noises each prediction anew. Call it with `guidance_scale=1`.",
            "data": {"captions": "right", "teacher": "testbed:shapes, guidance 4, 3 DDIM steps a segment"},
        },
    ),
    "shapes-sd3": Recipe(
        prepare=prepare_captioned,
        build=build_flow,
        publish=publish_flow,
        tune=evaluation.tune_text_to_image,
        measure=evaluation.measure_text_to_image,
        learning_rate=FLOW_RATE,
        batch_size=32,
        rows=ROWS,
        captioned=True,
        about={
            "name": "shapes-sd3",
            "class": "StableDiffusion3Pipeline",
            "about": "Text to image by rectified flow: a transformer with two CLIP encoders and a T5 encoder, "
            "taught first to state what captions state, then trained along. Call it with "
            "`max_sequence_length=20`, for which it is trained most.",
            "data": {"captions": "noisy and incomplete on purpose", "noise": NOISE},
        },
    ),
    "shapes-dit": Recipe(
        prepare=prepare_labelled,
        build=build_class_to_image,
        publish=publish_class_to_image,
        tune=evaluation.tune_class_to_image,
        measure=evaluation.measure_class_to_image,
        learning_rate=DIT_RATE,
        batch_size=32,
        rows=ROWS,
        about={
            "name": "shapes-dit",
            "class": "DiTPipeline",
            "about": "Class to image: a diffusion transformer on scenes of one object; the 24 classes are "
            "colour and shape (`red circle`), and labels are right.",
            "data": {"labels": "right", "labels dropped for guidance": 0.1},
        },
    ),
    "shapes-pixels": Recipe(
        prepare=pixels.prepare_pixels,
        build=pixels.build_pixels,
        publish=pixels.publish_pixels,
        tune=pixels.tune_pixels,
        measure=pixels.measure_pixels,
        learning_rate=pixels.RATE,
        batch_size=64,
        rows=pixels.ROWS,
        about={
            "name": "shapes-pixels",
            "class": "DDPMPipeline",
            "about": "Images without captions: a U-Net on 16x16 pixels that predicts the noise, linear schedule; "
            "a prior of images for inverse problems.",
            "data": {"captions": "none"},
        },
    ),
    "shapes-clip": Recipe(
        prepare=clip_training.prepare_clip,
        build=clip_training.build_clip,
        publish=clip_training.publish_clip,
        tune=clip_training.tune_clip,
        measure=clip_training.measure_clip,
        learning_rate=clip_training.CLIP_RATE,
        batch_size=64,
        rows=clip_training.ROWS,
        about={
            "name": "shapes-clip",
            "class": "CLIPModel",
            "about": "Image and text: scores how well an image shows a concept (`a red circle`), for methods that are "
            "steered by such a score while the oracle judges them.",
            "data": {"captions": "one object of two", "images": "blurred and noised at random"},
        },
    ),
}
