"""Training of the second stage: a denoiser in the latents of a frozen first stage (sections 3.2, 3.3)."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_finite, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.params import from_x0_epsilon
from noiseworks.core.schedules import Level, add_noise
from noiseworks.kits.training import Average, warm_decay
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from noiseworks.ldm.diffusion.objective import (
    PREDICTIONS,
    make_scheduler,
    run_unet,
)
from torch import Tensor, nn

LOSSES = ("l2", "l1")


class LatentDiffusionTrainer(L.LightningModule):
    """Trains a diffusers U-Net on the latents of a frozen first stage.

    A batch is a mapping that holds the latents in one of three forms, and the conditioner's keys:
    `"image"` `[B, 3, H, W]` in [-1, 1] (encoded with `vae`); `"mean"` with `"logvar"` `[B, C, h, w]`, a
    cached posterior that is sampled anew at every visit; or `"latents"` `[B, C, h, w]`, un-scaled.

    Noise, timesteps and dropped conditions of batch n are drawn from (seed, n, rank), so a resumed run
    repeats the numbers of an uninterrupted one. The averaged weights are `ema["unet"]` and
    `ema["conditioner"]`.

    Args:
        unet: `UNet2DModel` or `UNet2DConditionModel`.
        vae: `AutoencoderKL` or `VQModel`, frozen here; optional when batches hold latents.
        conditioner: None for an unconditional model.
        scheduler: The schedule (see `make_scheduler`); its `prediction_type` says what the U-Net predicts.
        loss: `"l2"` or `"l1"`, the mean over channels and pixels.
        learning_rate: Base rate; multiplied as `scale_lr` says.
        scale_lr: Whether the rate is base × processes × batch × accumulation (the paper code's default).
        batch_size: Rows of one process's batch, needed by `scale_lr`.
        scale_factor: A number that latents are multiplied with, or `"std"`: one over the standard deviation
            of all latent values of the first batch, estimated once on rank 0 and kept in checkpoints.
        condition_drop: Share of rows trained without condition; by default the conditioner's `default_drop`.
        ema_decay: Largest decay of the averaged weights.
        weight_decay: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        seed: Of noise, timesteps and dropped conditions.

    Raises:
        InputError: When values or shapes do not fit each other.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module | None = None,
        conditioner: Conditioner | None = None,
        scheduler: Any = None,
        *,
        loss: str = "l2",
        learning_rate: float = 1e-4,
        scale_lr: bool = False,
        batch_size: int | None = None,
        scale_factor: float | str = "std",
        condition_drop: float | None = None,
        ema_decay: float = 0.9999,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, LOSSES)
        check_number("learning_rate", learning_rate, low=0, low_open=True)
        check_number("ema_decay", ema_decay, low=0, high=1)
        if scale_factor != "std":
            check_number("scale_factor", scale_factor, low=0, low_open=True)
        if scale_lr and batch_size is None:
            raise InputError(
                "scale_lr multiplies the rate by the batch size: give batch_size, or scale_lr=False"
            )
        self.unet, self.conditioner = unet, conditioner
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.scheduler = make_scheduler() if scheduler is None else scheduler
        self.loss_kind = loss
        self.base_rate, self.scale_lr, self.batch_size = learning_rate, scale_lr, batch_size
        self.weight_decay, self.warmup_steps = weight_decay, warmup_steps
        self.seed = seed
        self.condition_drop = self._checked_drop(condition_drop)
        self.prediction_type = self.scheduler.config.prediction_type
        check_choice("prediction_type", self.prediction_type, PREDICTIONS)
        abar = self.scheduler.alphas_cumprod
        self.register_buffer("alphas_cumprod", abar.float(), persistent=False)
        fixed = math.nan if scale_factor == "std" else float(scale_factor)
        self.register_buffer("scale_factor", torch.tensor(fixed))
        decay = warm_decay(ema_decay)
        self.averages = nn.ModuleDict(
            {name: Average(module, decay) for name, module in self.trained_modules().items()}
        )
        self.batches_seen = 0

    @property
    def ema(self) -> dict[str, nn.Module]:
        """The averaged U-Net and, where it trains, the averaged conditioner."""
        return {name: average.model for name, average in self.averages.items()}

    def trained_modules(self) -> dict[str, nn.Module]:
        """Return what trains and is averaged: the U-Net, and the conditioner if it has weights to train."""
        modules = {"unet": self.unet}
        if self.conditioner is not None and any(p.requires_grad for p in self.conditioner.parameters()):
            modules["conditioner"] = self.conditioner
        return modules

    def _checked_drop(self, drop: float | None) -> float:
        if self.conditioner is None:
            return 0.0
        drop = self.conditioner.default_drop if drop is None else drop
        check_number("condition_drop", drop, low=0, high=1)
        return drop

    # --- latents -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def raw_latents(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Return un-scaled latents `[B, C, h, w]`: a posterior sample (KL) or the un-quantised code (VQ)."""
        if "latents" in batch:
            return batch["latents"].float()
        if "mean" in batch:
            mean, logvar = batch["mean"].float(), batch["logvar"].float().clamp(-30, 20)
        else:
            if self.vae is None:
                raise InputError(
                    f"batches hold no latents ({', '.join(batch)}) and no vae was given; give one"
                )
            encoded = self.vae.encode(batch["image"])
            if hasattr(encoded, "latents"):
                return encoded.latents.float()
            mean, logvar = encoded.latent_dist.mean.float(), encoded.latent_dist.logvar.float()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + (0.5 * logvar).exp() * noise

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Estimate the scale factor on the first batch ever seen; a resumed run keeps the one it has."""
        if not torch.isnan(self.scale_factor):
            return
        latents = self.raw_latents(batch, self.generator(stream=1))
        scale = 1.0 / latents.flatten().std()
        check_finite("the scale factor 1/std of the first batch", scale)
        scale = self.trainer.strategy.broadcast(scale, src=0)
        self.scale_factor.copy_(scale)

    def generator(self, stream: int = 0) -> torch.Generator:
        """Return the generator of the batch at hand: a function of (seed, batches seen, rank, stream)."""
        words = np.random.SeedSequence([self.seed, self.batches_seen, self.global_rank, stream])
        state = int(words.generate_state(1, np.uint64)[0]) >> 1
        return torch.Generator(device=self.device).manual_seed(state)

    # --- the loss ------------------------------------------------------------------------------------------

    def diffusion_loss(
        self,
        batch: Mapping[str, Any],
        generator: torch.Generator,
        *,
        condition_drop: float = 0.0,
        ema: bool = False,
    ) -> Tensor:
        """Return the loss of one batch, a scalar (equations 2 and 3; the mean over rows, channels and pixels).

        Args:
            batch: See the class.
            generator: Source of posterior noise, timesteps, noise and dropped conditions.
            condition_drop: Share of rows that get the null condition.
            ema: Whether the averaged weights are used.
        """
        unet = self.ema["unet"] if ema else self.unet
        latents = self.raw_latents(batch, generator) * self.scale_factor
        timesteps = torch.randint(
            len(self.alphas_cumprod), (len(latents),), generator=generator, device=latents.device
        )
        noise, drop = draw_noise(latents, condition_drop, generator)
        abar = self.alphas_cumprod[timesteps]
        level = Level(abar.sqrt(), (1 - abar).sqrt())
        condition = self.condition(batch, drop, ema=ema)
        predicted = run_unet(unet, add_noise(latents, noise, level), timesteps, condition).float()
        error = predicted - from_x0_epsilon(latents, noise, level, self.prediction_type)
        error = error.abs() if self.loss_kind == "l1" else error.square()
        return self.weighted(error, abar, batch).flatten(1).mean(1).mean()

    def weighted(self, error: Tensor, abar: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the errors `[B, C, h, w]` as the loss counts them; here as they are (equation 2).

        Args:
            error: Of each value.
            abar: The cumulative product of the alphas at each row's timestep, `[B]`.
            batch: See the class.
        """
        return error

    def condition(self, batch: Mapping[str, Any], drop: Tensor | None, *, ema: bool = False) -> Condition:
        """Return the condition of a batch, from the averaged conditioner when `ema`."""
        if self.conditioner is None:
            return Condition()
        averaged = ema and "conditioner" in self.ema
        return (self.ema["conditioner"] if averaged else self.conditioner)(batch, drop)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            NonFiniteError: When the loss is NaN or infinite.
        """
        loss = self.diffusion_loss(batch, self.generator(), condition_drop=self.condition_drop)
        check_finite("loss", loss, self.global_step)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.batches_seen += 1
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the loss of the trained and of the averaged weights, on the same noise at every validation."""
        words = np.random.SeedSequence([self.seed, batch_idx, self.global_rank, 2])
        state = int(words.generate_state(1, np.uint64)[0]) >> 1
        for name, ema in (("val/loss", False), ("val/loss_ema", True)):
            generator = torch.Generator(device=self.device).manual_seed(state)
            loss = self.diffusion_loss(batch, generator, ema=ema)
            self.log(name, loss, sync_dist=True, batch_size=1)

    # --- optimisation --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over U-Net and trained conditioner, with a linear warm-up."""
        parameters = [
            p for module in self.trained_modules().values() for p in module.parameters() if p.requires_grad
        ]
        rate = self.base_rate
        if self.scale_lr:
            rate *= self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.weight_decay, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then the averaged weights (before any checkpoint callback sees the step)."""
        super().optimizer_step(*args, **kwargs)
        self.update_ema()

    def update_ema(self) -> None:
        """Move the averaged weights towards the trained ones."""
        for name, module in self.trained_modules().items():
            self.averages[name].update(module)

    def train(self, mode: bool = True) -> "LatentDiffusionTrainer":
        """Set the mode, but the first stage stays in evaluation mode, as do the averaged weights."""
        super().train(mode)
        if self.vae is not None:
            self.vae.eval()
        return self

    # --- checkpoints ---------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the counter that noise depends on."""
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        self.batches_seen = checkpoint["batches_seen"]


def draw_noise(
    latents: Tensor, condition_drop: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return noise like `latents` `[B, C, h, w]`, and which rows lose their condition, bool `[B]`.

    Args:
        latents: Scaled latents.
        condition_drop: Share of rows without condition; at 0 nothing is drawn and the rows are None.
        generator: Source of both.
    """
    device = latents.device
    noise = torch.randn(latents.shape, generator=generator, device=device)
    if condition_drop == 0:
        return noise, None
    return noise, torch.rand(len(latents), generator=generator, device=device) < condition_drop
