"""The pixel model of `digits`: an unconditional DDPM of 8x8 handwritten digits, the linear schedule, 1000 steps."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure
from noiseworks.bench.testbeds.digits import TRAIN_SIZE, load
from noiseworks.bench.testbeds.shapes.pixels import RATE, PixelTrainer, denoising_errors, missed_shares
from noiseworks.bench.testbeds.training import Captions, Recipe
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def digit_images(split: str = "train") -> tuple[Tensor, Tensor]:
    """Return digits [n, 1, 8, 8] in [-1, 1] and their labels [n].

    Args:
        split: `train` or `test`.
    """
    images, labels = load(split)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def prepare_digits(captions: Captions, rows: int | None) -> dict[str, Tensor]:
    """Return the training images as bytes."""
    images = digit_images()[0][:rows]
    return {"image": images.add(1).mul(127.5).round().byte().contiguous()}


def make_digit_unet() -> "UNet2DModel":
    """Return the untrained network, 0.2 M parameters, with attention at 4x4."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )


def build_digits(data: dict[str, Tensor]) -> PixelTrainer:
    """Return the trainer."""
    return PixelTrainer(make_digit_unet())


def publish_digits(module: PixelTrainer, folder: Path) -> None:
    """Write the averaged network as a `DDPMPipeline`."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from noiseworks.bench.testbeds.shapes.recipes import save_half

    pipeline = DDPMPipeline(copy.deepcopy(module.average.model), DDPMScheduler(beta_schedule="linear"))
    save_half(pipeline, folder)


def tune_digits(folder: Path, n: int) -> dict[str, float]:
    """Return the share of the training digits' variance that the model finds again."""
    errors = denoising_errors(folder, digit_images()[0][:n], 0)
    return {"share_right": float(np.mean([1 - error.mean() for error in errors.values()]))}


def measure_digits(folder: Path, n: int) -> dict[str, Figure]:
    """Return the card's figures: the denoising error of test digits at three noise levels."""
    return missed_shares(denoising_errors(folder, digit_images("test")[0][:n], CARD_SEED))


RECIPES = {
    "digits-pixels": Recipe(
        prepare=prepare_digits,
        build=build_digits,
        publish=publish_digits,
        tune=tune_digits,
        measure=measure_digits,
        learning_rate=RATE,
        batch_size=64,
        rows=TRAIN_SIZE,
        about={
            "name": "digits-pixels",
            "class": "DDPMPipeline",
            "about": "Digits without labels: a U-Net on 8x8 pixels of one channel that predicts the noise, linear "
            "schedule; a prior of images for guidance by other networks.",
            "data": {"captions": "none"},
        },
    ),
}
