"""The pixel model of `shapes`: an unconditional DDPM of 16x16 scenes, for methods that need a prior of images.

`DDPMPipeline` with the linear schedule of Ho et al. (2020), 1000 steps, predicting the noise. The images are the
rendered scenes, averaged over 2x2 pixels.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.shapes.scenes import pixel_scenes
from noiseworks.core.schedules import add_noise, table_schedule
from noiseworks.kits.training import Average, warm_decay
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DModel
    from noiseworks.bench.testbeds.training import Captions

SIDE = 16
ROWS = 30_000
TRAIN_SEED = 0
RATE = 2e-3
LEVELS = (200, 500, 800)  # timesteps at which the card states how well the model denoises


def make_pixel_unet() -> "UNet2DModel":
    """Return the untrained network, 0.6 M parameters, with attention at 4x4."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(24, 48, 48),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )


class PixelTrainer(L.LightningModule):
    """Trains a network to predict the noise of images (Ho et al. 2020, eq. 14), with a moving average.

    Args:
        unet: The network.
    """

    def __init__(self, unet: "UNet2DModel") -> None:
        super().__init__()
        self.unet, self.average = unet, Average(unet, warm_decay(0.998))
        self.schedule = table_schedule("linear")

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error of the noise of one batch of bytes `image` [B, 3, 16, 16]."""
        images = batch["image"].float().div(127.5).sub(1)
        t = torch.randint(self.schedule.num_steps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        noisy = add_noise(images, noise, self.schedule.level(t))
        return F.mse_loss(self.unet(noisy, t).sample, noise)

    def on_train_batch_end(self, *args: Any) -> None:
        """Move the average."""
        self.average.update(self.unet)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, whose rate the budget sets."""
        return torch.optim.Adam(self.unet.parameters(), RATE, betas=(0.9, 0.99))


def prepare_pixels(captions: "Captions", rows: int | None) -> dict[str, Tensor]:
    """Return the training images as bytes."""
    images = pixel_scenes(rows or ROWS, TRAIN_SEED)
    return {"image": images.add(1).mul(127.5).round().byte().contiguous()}


def build_pixels(data: dict[str, Tensor]) -> L.LightningModule:
    """Return the trainer."""
    return PixelTrainer(make_pixel_unet())


def publish_pixels(module: PixelTrainer, folder: Path) -> None:
    """Write the averaged network as a `DDPMPipeline`."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from noiseworks.bench.testbeds.shapes.recipes import save_half

    pipeline = DDPMPipeline(copy.deepcopy(module.average.model), DDPMScheduler(beta_schedule="linear"))
    save_half(pipeline, folder)


@torch.no_grad()
def denoising_errors(folder: Path, images: Tensor, seed: int) -> dict[int, np.ndarray]:
    """Return the squared error of E[x_0 | x_t] of images at each of `LEVELS`, as a share of their variance.

    Args:
        folder: A published model.
        images: [n, C, H, W] in [-1, 1].
        seed: Of the noise.
    """
    from diffusers import DDPMPipeline

    unet, schedule = DDPMPipeline.from_pretrained(folder).unet.eval(), table_schedule("linear")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    errors = {}
    for t in LEVELS:
        level = schedule.level(t)
        noisy = add_noise(images, noise, level)
        predicted = torch.cat([unet(part, t).sample for part in noisy.split(100)])
        missed = (predicted - noise) * float(level.sigma_ve)
        errors[t] = (missed.square().mean((1, 2, 3)) / images.var()).numpy()
    return errors


def tune_pixels(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of the scenes' variance that the model finds again, which selects the model that is kept."""
    errors = denoising_errors(folder, pixel_scenes(n, seed, "test"), seed)
    return {"share_right": float(np.mean([1 - error.mean() for error in errors.values()]))}


def measure_pixels(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures: the denoising error at three noise levels.

    Args:
        folder: The model's folder.
        n: Scenes.
        seed: Seed of the scenes.
    """
    return missed_shares(denoising_errors(folder, pixel_scenes(n, seed, "test"), seed))


def missed_shares(errors: Mapping[int, np.ndarray]) -> dict[str, Figure]:
    """Return `denoising_errors` as figures of a card."""
    return {f"share of the variance missed by the denoiser, t = {t}": figure(e) for t, e in errors.items()}
