"""Training of `shapes-inpaint`: the shipped U-Net with five more channels, mask and masked image's latent.

`shapes-inpaint-narrow` is a second editor with a first stage of its own, trained from nothing. It predicts the
velocity, which is -x0 where noise is highest, so that colours of what is kept are learned there without a weight.

The masked image shows the object on its old background and the target shows it on a new one, so that the editor
follows the prompt and not the rim of old background that a loose mask leaves.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.shapes import editing
from noiseworks.bench.testbeds.shapes import recipes as shared
from noiseworks.bench.testbeds.shapes.scenes import BACKGROUNDS, Scene, caption, render, sample_scenes
from noiseworks.core.models import resolve_model
from noiseworks.ldm.conditioning.conditioners import Condition, TextConditioner
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer

if TYPE_CHECKING:
    import lightning as L
    from diffusers import DiffusionPipeline, UNet2DConditionModel

ROWS, RATE, NARROW_RATE = 12_000, 1.5e-3, 2e-3
FULL_CAPTIONS = 0.1  # the others name shape and background only
MOST, KEPT = 20.0, 3.0  # of the weights of the loss
STEPS, GUIDANCE = 20, 2.0


class InpaintConditioner(TextConditioner):
    """Captions through a frozen encoder, joined by the mask and the masked image's latent.

    Batch keys besides those of `TextConditioner`: `"maps"` [B, 5, h, w], the mask and the scaled latent.
    """

    kind = "hybrid"

    def forward(self, batch: Mapping[str, Any], drop: torch.Tensor | None = None) -> Condition:
        """Return the encoder's states and the maps, which are never dropped."""
        return replace(super().forward(batch, drop), concat=batch["maps"].float())


def prepare_edits(captions: str, rows: int | None) -> dict[str, torch.Tensor]:
    """Return posteriors of targets, masks with masked latents, and caption ids."""
    return _edits(rows or ROWS, shared.TRAIN_SEED, "shapes-vae")


def prepare_narrow_edits(captions: str, rows: int | None) -> dict[str, torch.Tensor]:
    """Return the same of other scenes, in the latents of the second first stage."""
    return _edits(rows or ROWS, shared.NARROW_SEED, "shapes-vae-narrow")


def _edits(count: int, seed: int, first_stage: str) -> dict[str, torch.Tensor]:
    from noiseworks.bench.testbeds.shapes import architectures as nets

    drawn = sample_scenes(2 * count + 16, seed)
    targets = [scene for scene in drawn if scene.kind == "single"][:count]
    rng = np.random.default_rng([seed, 9])
    names = tuple(BACKGROUNDS)
    sources = [replace(scene, background=names[int(rng.integers(len(names)))]) for scene in targets]
    kinds = rng.integers(len(editing.MASK_KINDS), size=len(targets))
    kept = np.stack(
        [editing.kept_region(s, editing.MASK_KINDS[k]) for s, k in zip(targets, kinds, strict=True)]
    )
    texts = [_caption(scene, rng) for scene in targets]
    ids = nets.make_tokenizer()(texts, padding="max_length", return_tensors="pt")["input_ids"]
    keep = torch.from_numpy(kept)[:, None].float()
    table = shared.encode_scenes(targets, first_stage)
    maps = _maps(shared.to_tensor(render(sources)), keep, first_stage)
    return table | {"maps": maps, "input_ids": ids}


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    if rng.random() < FULL_CAPTIONS:
        return caption(scene)
    return f"a {scene.objects[0].shape} on a {scene.background} background"


@torch.no_grad()
def _maps(images: torch.Tensor, keep: torch.Tensor, first_stage: str) -> torch.Tensor:
    vae = shared.shipped_vae(first_stage)
    masked = [
        vae.encode(part * kept).latent_dist.mean
        for part, kept in zip(images.split(256), keep.split(256), strict=True)
    ]
    latents = torch.cat(masked) * vae.config.scaling_factor
    mask = torch.nn.functional.interpolate(1 - keep, size=latents.shape[-2:])
    return torch.cat([mask, latents], dim=1)


def widened(unet: "UNet2DConditionModel") -> "UNet2DConditionModel":
    """Return a U-Net that also takes a mask, with weights of zero, and a masked latent, with the latent's own weights.

    A latent that is partly shown is what the U-Net can read already; from weights of zero the object's colour and place
    are not learned within minutes.
    """
    config = dict(unet.config) | {"in_channels": 2 * unet.config.in_channels + 1}
    wide = type(unet).from_config(config)
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros_like(first[:, :1]), first], dim=1)
    wide.load_state_dict(weights)
    return wide


class InpaintTrainer(LatentDiffusionTrainer):
    """The latent diffusion loss, counted as what the object's colour is learned from.

    The colour of what is kept is settled at high noise, where the error of a noise prediction is the latent's error
    divided by the noise-to-signal ratio and so hardly counts. That of a velocity counts there already.
    """

    def weighted(self, error: torch.Tensor, abar: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the errors, more in the kept region; those of noise times its ratio to the signal in [1, `MOST`]."""
        ratio = ((1 - abar) / abar).clamp(1, MOST)[:, None, None, None]
        if self.prediction_type == "v_prediction":
            ratio = torch.ones_like(ratio)
        return error * ratio * (1 + KEPT * (1 - batch["maps"][:, :1].float()))


def build_inpainting(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the shipped `shapes` with a widened U-Net under the latent diffusion loss; its captions stay frozen."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(resolve_model("testbed:shapes"))
    conditioner = InpaintConditioner(pipe.text_encoder.eval(), pipe.tokenizer, trained=False)
    return InpaintTrainer(
        widened(pipe.unet),
        pipe.vae,
        conditioner,
        pipe.scheduler,
        learning_rate=RATE,
        scale_factor=pipe.vae.config.scaling_factor,
        ema_decay=0.99,
    )


def build_narrow_inpainting(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return a second editor under the same loss, of a velocity; its text encoder trains along."""
    from noiseworks.bench.testbeds.shapes import architectures as nets
    from noiseworks.ldm.diffusion.trainer import make_scheduler

    tokenizer, vae = nets.make_tokenizer(), shared.shipped_vae("shapes-vae-narrow")
    encoder = nets.make_text_encoder(tokenizer, nets.NARROW_TEXT_WIDTH)
    return InpaintTrainer(
        nets.make_unet(nets.NARROW_UNET, nets.NARROW_TEXT_WIDTH, in_channels=9),
        vae,
        InpaintConditioner(encoder, tokenizer),
        make_scheduler(beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"),
        learning_rate=NARROW_RATE,
        scale_factor=vae.config.scaling_factor,
        ema_decay=0.99,
    )


def publish_inpainting(module: Any, folder: Path) -> None:
    """Write the averaged model as a `StableDiffusionInpaintPipeline`."""
    from noiseworks.ldm.conversion.export import to_pipeline

    shared.save_half(copy.deepcopy(to_pipeline(module)), folder)


def edited(
    pipe: "DiffusionPipeline", edits: list[editing.Edit], kind: editing.MaskKind, seed: int
) -> np.ndarray:
    """Return edited images [n, 32, 32, 3] in [0, 1]; edit i uses the seed `seed + i`."""
    images = shared.to_tensor(render([edit.scene for edit in edits]))
    masks = torch.from_numpy(editing.edit_masks(edits, kind))
    parts = []
    for start in range(0, len(edits), 50):
        rows = slice(start, start + 50)
        part = edits[rows]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        drawn = pipe(
            [edit.prompt for edit in part],
            image=images[rows],
            mask_image=masks[rows],
            height=32,
            width=32,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="np",
        )
        parts.append(drawn.images)
    return np.concatenate(parts).astype(np.float32)


def tune_inpainting(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of edits that come out with the mask `seen` and with a box."""
    from noiseworks.bench.testbeds.shapes.evaluation import load

    pipe, edits = load(folder), editing.sample_edits(n, seed)
    shares = {
        kind: float(editing.edit_success(edited(pipe, edits, kind, seed), edits).mean())
        for kind in ("seen", "box")
    }
    return {"share_right": shares["seen"], "share_right_box": shares["box"]}


def measure_inpainting(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures: the share of edits that come out, by mask.

    Args:
        folder: The pipeline's folder.
        n: Edits.
        seed: Seed of the edits and of their noise.
    """
    from noiseworks.bench.testbeds.shapes.evaluation import load

    pipe, edits = load(folder), editing.sample_edits(n, seed)
    return {
        f"edits that come out, mask {kind}": figure(
            editing.edit_success(edited(pipe, edits, kind, seed), edits)
        )
        for kind in editing.MASK_KINDS
    }
