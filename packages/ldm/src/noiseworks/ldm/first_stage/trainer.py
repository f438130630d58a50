"""Training of the first stage: a diffusers `AutoencoderKL` or `VQModel` and its discriminator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.images import peak_signal_to_noise
from noiseworks.kits.training import Average, warm_decay
from noiseworks.ldm.first_stage import codebook as vq
from noiseworks.ldm.first_stage.losses import (
    PerceptualAdversarialLoss,
    kl_to_standard_normal,
    recorded_input,
)
from torch import Tensor, nn

_NOISE = 0  # the stream of random numbers that posterior noise comes from


@dataclass(frozen=True)
class Encoded:
    """Latents that go into the decoder, and what the loss needs of them.

    Attributes:
        latents: [B, C, h, w], differentiable.
        latent_loss: KL_b [B], or the codebook loss (scalar).
        codes: Code indices [B h w] of a VQ model, else None.
    """

    latents: Tensor
    latent_loss: Tensor
    codes: Tensor | None = None


def scaled_learning_rate(base: float, batch_size: int, devices: int = 1, accumulate: int = 1) -> float:
    """Return base × devices × batch × accumulation, the authors' rule (base 4.5e-6 for first stages)."""
    return base * devices * batch_size * accumulate


def down_factor(vae: nn.Module) -> int:
    """Return f, the ratio of image to latent side, of an `AutoencoderKL` or `VQModel`."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


class FirstStageTrainer(L.LightningModule):
    """Trains an autoencoder and its patch discriminator, two optimiser steps a batch on one forward pass.

    A batch is a tensor [B, C, H, W] in [-1, 1], a sequence whose first item is one, or a mapping with `image`.

    Batches are counted here (`batches_done`), because Lightning's `global_step` counts optimiser steps, two a
    batch. Posterior noise is drawn from (seed, batches done, row of the whole batch over all processes), so it does not
    depend on the number of processes or on interruptions. With several processes use
    `strategy="ddp_find_unused_parameters_true"` and `PatchDiscriminator(norm="group")` (or synchronised BatchNorm).

    Args:
        vae: The autoencoder.
        loss: A loss of the same kind ("kl" or "vq").
        learning_rate: Adam's rate, for both optimisers (see `scaled_learning_rate`).
        disc_learning_rate: The discriminator's rate when it differs.
        betas: Adam's betas.
        ema_decay: Largest decay of averaged weights, which warm up as min(decay, (1 + n) / (10 + n)), or
            None.
        seed: Seed of posterior noise.
        accumulate: Batches of an optimiser step: gradients are averaged over them, and averaged weights move once a
            step. λ is that of each batch.

    Attributes:
        average: The averaged autoencoder (`average.model`), or None.
        batches_done: Number of batches trained on.

    Raises:
        InputError: When an option is out of range or loss and autoencoder do not fit.
        UnsupportedHostError: When `vae` is neither an `AutoencoderKL` nor a `VQModel`.
    """

    def __init__(
        self,
        vae: nn.Module,
        loss: PerceptualAdversarialLoss,
        *,
        learning_rate: float = 1e-4,
        disc_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.9),
        ema_decay: float | None = None,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_number("accumulate", accumulate, low=1, integer=True)
        self.accumulate = accumulate
        kind = autoencoder_kind(vae)
        if kind != loss.kind:
            raise InputError(f"a {type(vae).__name__} trains with a loss of kind {kind!r}, got {loss.kind!r}")
        check_number("learning_rate", learning_rate, low=0, low_open=True)
        if ema_decay is not None:
            check_number("ema_decay", ema_decay, low=0, high=1)
        self.factor = down_factor(vae)
        self.vae, self.loss = vae.train().requires_grad_(True), loss
        self.learning_rate, self.betas, self.seed = learning_rate, betas, seed
        self.disc_learning_rate = disc_learning_rate if disc_learning_rate is not None else learning_rate
        self.average = None if ema_decay is None else Average(vae, warm_decay(ema_decay))
        self.batches_done = 0

    # Forward ------------------------------------------------------------------------------------------------

    def encode(self, vae: nn.Module, images: Tensor, noise: Tensor | None) -> Encoded:
        """Encode images [B, C, H, W]; `noise` [B, C', h, w] makes KL latents samples, None their means."""
        if self.loss.kind == "kl":
            posterior = vae.encode(images).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
            return Encoded(latents, kl_to_standard_normal(mean, logvar))
        latents = vae.encode(images).latents.float()
        vectors = latents.movedim(1, -1).flatten(0, -2)
        table = vae.quantize.embedding.weight.float()
        codes = vq.nearest_codes(vectors, table)
        quantised = F.embedding(codes, table)
        latent_loss = vq.codebook_loss(vectors, quantised)
        shape = (latents.shape[0], *latents.shape[2:], latents.shape[1])
        through = vq.straight_through(vectors, quantised).view(shape).movedim(-1, 1)
        return Encoded(through, latent_loss, codes)

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Decode latents, quantised already (VQ) or posterior values (KL), to images [B, C, H, W]."""
        if self.loss.kind == "kl":
            return vae.decode(latents).sample
        return vae.decode(latents, force_not_quantize=True).sample

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images [B, C, H, W] in [-1, 1] from mean latents, with averaged weights if present."""
        vae = self.vae if self.average is None else self.average.model
        return self.decode(vae, self.encode(vae, images, None).latents)

    # Training -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Warn when the discriminator would never start within the run."""
        self.loss.warn_if_never_adversarial(self.trainer.estimated_stepping_batches)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Step the autoencoder and, once it has started, the discriminator on one batch."""
        images = self.read_batch(batch)
        with recorded_input(self.vae.decoder.conv_out) as last_inputs:
            encoded = self.encode(self.vae, images, self._posterior_noise(images))
            reconstructions = self.decode(self.vae, encoded.latents)
        terms = self.loss.generator(
            images,
            reconstructions,
            self.vae.decoder.conv_out,
            last_inputs[-1],
            self.batches_done,
        )
        regularisation = self.loss.regularisation(encoded.latent_loss)
        value = terms.value + regularisation.detach()
        check_finite("the first-stage loss", value, self.batches_done)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self._autoencoder_step(optimizers[0], reconstructions, terms, regularisation)
        log = terms.log | {"loss": value, "latent": encoded.latent_loss.detach().mean()}
        if terms.fake_logits is not None:
            log |= self._discriminator_step(optimizers[1], images, terms.fake_logits)
        if encoded.codes is not None:
            counts = self._summed_counts(encoded.codes)
            log |= {"perplexity": vq.perplexity(counts).float(), "codebook_usage": vq.usage(counts).float()}
        stepped = self.completes_window
        self.batches_done += 1
        if stepped and self.average is not None:
            self.average.update(self.vae)
        several = self.trainer.world_size > 1
        self.log_dict({f"train/{name}": item for name, item in log.items()}, sync_dist=several)
        self.log("loss", value, prog_bar=True, logger=False)

    def _autoencoder_step(
        self, optimizer: Any, reconstructions: Tensor, terms: Any, regularisation: Tensor
    ) -> None:
        # A scalar whose gradient is (∂loss/∂x̂, ∂regulariser): one walk, and one that loss scaling can scale.
        surrogate = (reconstructions.float() * terms.image_gradient).sum() + regularisation
        self._accumulated_step(optimizer, surrogate)

    def _accumulated_step(self, optimizer: Any, value: Tensor) -> None:
        """Add a batch's share to the gradients, and step once they hold a whole window."""
        if self.batches_done % self.accumulate == 0:
            optimizer.zero_grad()
        self.manual_backward(value / self.accumulate)
        if self.completes_window:
            optimizer.step()

    @property
    def completes_window(self) -> bool:
        """Whether the batch at hand is the last one of its optimiser step."""
        return (self.batches_done + 1) % self.accumulate == 0

    def _discriminator_step(self, optimizer: Any, images: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        value, log = self.loss.discriminator(images, fake_logits)
        check_finite("the discriminator loss", value, self.batches_done)
        self._accumulated_step(optimizer, value)
        return log

    def _summed_counts(self, codes: Tensor) -> Tensor:
        """Return how often each code occurs in the whole batch over all processes, [n]."""
        counts = torch.bincount(codes, minlength=self.vae.quantize.embedding.num_embeddings)
        return (
            self.trainer.strategy.reduce(counts, reduce_op="sum") if self.trainer.world_size > 1 else counts
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log `val/rec_loss`, which selects checkpoints, and the PSNR, with averaged weights if present."""
        images = self.read_batch(batch)
        reconstructions = self(images)
        self.log("val/rec_loss", self.loss.reconstruction(images, reconstructions.float()), sync_dist=True)
        psnr = peak_signal_to_noise(images, reconstructions.float()).mean()
        self.log("val/psnr", psnr.float(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the autoencoder (with its codebook) and, if there is one, the discriminator."""
        own = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        found = [torch.optim.Adam(own, lr=self.learning_rate, betas=self.betas, foreach=True)]
        if self.loss.disc is not None:
            parameters = self.loss.disc.parameters()
            found.append(
                torch.optim.Adam(parameters, lr=self.disc_learning_rate, betas=self.betas, foreach=True)
            )
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the batch counter."""
        checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the batch counter."""
        self.batches_done = checkpoint["batches_done"]

    # Noise and batches ---------------------------------------------------------------------------------

    def _posterior_noise(self, images: Tensor) -> Tensor | None:
        if self.loss.kind == "vq":
            return None
        words = np.random.SeedSequence((self.seed, self.batches_done, _NOISE)).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        rows, rank = len(images), self.global_rank
        side = [size // self.factor for size in images.shape[-2:]]
        shape = (rows * self.trainer.world_size, self.vae.config.latent_channels, *side)
        noise = torch.randn(shape, generator=generator)
        return noise[rank * rows : (rank + 1) * rows].to(images.device)

    def read_batch(self, batch: Any) -> Tensor:
        """Return the images of a batch.

        Raises:
            InputError: When the images are not [B, C, H, W] of the autoencoder's channels, or no multiple
                of f.
        """
        if isinstance(batch, Mapping):
            images = batch["image"]
        else:
            images = batch if isinstance(batch, Tensor) else batch[0]
        channels = self.vae.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputError(
                f"images must be [B, {channels}, H, W], got {tuple(images.shape)}; convert them to RGB"
            )
        if any(size % self.factor for size in images.shape[-2:]):
            side = "x".join(map(str, images.shape[-2:]))
            raise InputError(
                f"the image size {side} is not a multiple of f = {self.factor}; resize or crop the images"
            )
        return images


def autoencoder_kind(vae: nn.Module) -> str:
    """Return "kl" for an `AutoencoderKL` and "vq" for a `VQModel`.

    Raises:
        UnsupportedHostError: For anything else.
    """
    from diffusers import AutoencoderKL, VQModel

    if isinstance(vae, AutoencoderKL):
        return "kl"
    if isinstance(vae, VQModel):
        return "vq"
    raise UnsupportedHostError(
        f"the first stage must be a diffusers AutoencoderKL or VQModel, got {type(vae).__name__}"
    )
