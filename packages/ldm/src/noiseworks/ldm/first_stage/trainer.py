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

_NOISE, _RESIZE, _RESTART = range(3)


@dataclass(frozen=True)
class CodebookOptions:
    """How the codebook of a `VQModel` is trained.

    Attributes:
        beta: Weight of the second term of the codebook loss.
        legacy: Order of its terms, see `codebook_loss`.
        average_decay: Decay of a codebook that is a moving average instead of trained by gradient, or None.
        restart_every: Batches after which codes unused since the last time are replaced by encoder outputs
            (0: never).
    """

    beta: float = 0.25
    legacy: bool = True
    average_decay: float | None = None
    restart_every: int = 0


@dataclass(frozen=True)
class Encoded:
    """Latents that go into the decoder, and what the loss needs of them.

    Attributes:
        latents: [B, C, h, w], differentiable.
        latent_loss: KL_b [B], or the codebook loss (scalar).
        codes: Code indices [B h w] of a VQ model, else None.
        vectors: Un-quantised vectors [B h w, C] of a VQ model, without gradient, else None.
    """

    latents: Tensor
    latent_loss: Tensor
    codes: Tensor | None = None
    vectors: Tensor | None = None


def scaled_learning_rate(base: float, batch_size: int, devices: int = 1, accumulate: int = 1) -> float:
    """Return base × devices × batch × accumulation, the authors' rule (base 4.5e-6 for first stages)."""
    return base * devices * batch_size * accumulate


def down_factor(vae: nn.Module) -> int:
    """Return f, the ratio of image to latent side, of an `AutoencoderKL` or `VQModel`."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


class FirstStageTrainer(L.LightningModule):
    """Trains an autoencoder and its patch discriminator, two optimiser steps a batch on one forward pass.

    A batch is a tensor [B, C, H, W] in [-1, 1], a sequence whose first item is one, or a mapping with `image`
    and, where used, `condition` [B, K, H, W] (conditional discriminator) and `weight` [B] (exemplar weights).

    Batches are counted here (`batches_done`), because Lightning's `global_step` counts optimiser steps, two a
    batch. Posterior noise, sizes and restarts are drawn from (seed, batches done, row of the whole batch over
    all processes), so they do not depend on the number of processes or on interruptions. With several
    processes use `strategy="ddp_find_unused_parameters_true"` and `PatchDiscriminator(norm="group")` (or
    synchronised BatchNorm).

    Args:
        vae: The autoencoder.
        loss: A `PerceptualAdversarialLoss` or `SegmentationLoss` of the same kind ("kl" or "vq").
        learning_rate: Adam's rate, for both optimisers (see `scaled_learning_rate`).
        disc_learning_rate: The discriminator's rate when it differs.
        betas: Adam's betas.
        ema_decay: Largest decay of averaged weights, which warm up as min(decay, (1 + n) / (10 + n)), or
            None.
        resize_range: (smallest, largest) side; every batch is resized to a random multiple of 16 (or of f,
            when larger) in it. None: sizes stay.
        codebook: Options of a `VQModel`.
        seed: Seed of posterior noise, sizes and restarts.
        accumulate: Batches of an optimiser step: gradients are averaged over them, and averaged weights and
            an averaged codebook move once a step. λ is that of each batch.

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
        resize_range: tuple[int, int] | None = None,
        codebook: CodebookOptions | None = None,
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
        if resize_range is not None:
            self.sizes = _sizes(resize_range, self.factor)
        self.resize_range = resize_range
        self.vae, self.loss = vae.train().requires_grad_(True), loss
        self.learning_rate, self.betas, self.seed = learning_rate, betas, seed
        self.disc_learning_rate = disc_learning_rate if disc_learning_rate is not None else learning_rate
        self.average = None if ema_decay is None else Average(vae, warm_decay(ema_decay))
        self.codebook_options = codebook or CodebookOptions()
        self.codebook_average: vq.CodebookAverage | None = None
        if kind == "vq":
            self._prepare_codebook(vae.quantize.embedding)
        self.batches_done = 0

    def _prepare_codebook(self, embedding: nn.Embedding) -> None:
        options = self.codebook_options
        check_number("restart_every", options.restart_every, low=0, integer=True)
        if options.average_decay is not None:
            embedding.weight.requires_grad_(False)
            self.codebook_average = vq.CodebookAverage(embedding.weight, options.average_decay)
        self.register_buffer("code_counts", torch.zeros(embedding.num_embeddings))
        self._window: list[Tensor] | None = None  # counts and sums of the codes in an unfinished window

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
        options = self.codebook_options
        if self.codebook_average is None:
            latent_loss = vq.codebook_loss(vectors, quantised, options.beta, options.legacy)
        else:
            latent_loss = (1.0 if options.legacy else options.beta) * (quantised - vectors).square().mean()
        shape = (latents.shape[0], *latents.shape[2:], latents.shape[1])
        through = vq.straight_through(vectors, quantised).view(shape).movedim(-1, 1)
        return Encoded(through, latent_loss, codes, vectors.detach())

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
        images, condition, weights = self.read_batch(batch)
        with recorded_input(self.vae.decoder.conv_out) as last_inputs:
            encoded = self.encode(self.vae, images, self._posterior_noise(images))
            reconstructions = self.decode(self.vae, encoded.latents)
        terms = self.loss.generator(
            images,
            reconstructions,
            self.vae.decoder.conv_out,
            last_inputs[-1],
            self.batches_done,
            condition,
            weights,
        )
        regularisation = self.loss.regularisation(encoded.latent_loss)
        value = terms.value + regularisation.detach()
        check_finite("the first-stage loss", value, self.batches_done)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self._autoencoder_step(optimizers[0], reconstructions, terms, regularisation)
        log = terms.log | {"loss": value, "latent": encoded.latent_loss.detach().mean()}
        if terms.fake_logits is not None:
            log |= self._discriminator_step(optimizers[1], images, terms.fake_logits, condition)
        if encoded.codes is not None:
            log |= self._codebook_step(encoded.codes, encoded.vectors)
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
        if terms.logvar_gradient is not None:
            surrogate = surrogate + self.loss.logvar * terms.logvar_gradient
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

    def _discriminator_step(
        self, optimizer: Any, images: Tensor, fake_logits: Tensor, condition: Tensor | None
    ) -> dict[str, Tensor]:
        value, log = self.loss.discriminator(images, fake_logits, condition)
        check_finite("the discriminator loss", value, self.batches_done)
        self._accumulated_step(optimizer, value)
        return log

    @torch.no_grad()
    def _codebook_step(self, codes: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        table, options = self.vae.quantize.embedding.weight, self.codebook_options
        counts = self._summed(torch.bincount(codes, minlength=len(table)).to(self.code_counts))
        if self.codebook_average is not None:
            sums = torch.zeros_like(table).index_add_(0, codes, vectors.to(table))
            self._average_codes(table, counts, self._summed(sums))
        self.code_counts += counts
        if options.restart_every and (self.batches_done + 1) % options.restart_every == 0:
            generator = self._generator(_RESTART)
            # Every process draws among its own vectors; the first one's choice counts.
            dead = vq.restart_dead_codes(table, self.code_counts, vectors, generator)
            table.copy_(
                self.trainer.strategy.broadcast(table, src=0) if self.trainer.world_size > 1 else table
            )
            if self.codebook_average is not None:
                self.codebook_average.sums[dead] = table[dead].to(self.codebook_average.sums)
                self.codebook_average.counts[dead] = 1.0
            self.code_counts.zero_()
        return {"perplexity": vq.perplexity(counts).float(), "codebook_usage": vq.usage(counts).float()}

    def _average_codes(self, table: Tensor, counts: Tensor, sums: Tensor) -> None:
        if self._window is not None:
            counts, sums = counts + self._window[0], sums + self._window[1]
        self._window = None if self.completes_window else [counts, sums]
        if self.completes_window:
            self.codebook_average.update(table, counts, sums)

    def _summed(self, tensor: Tensor) -> Tensor:
        return (
            self.trainer.strategy.reduce(tensor, reduce_op="sum") if self.trainer.world_size > 1 else tensor
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log `val/rec_loss`, which selects checkpoints, and the PSNR, with averaged weights if present."""
        images, _, weights = self.read_batch(batch, resize=False)
        reconstructions = self(images)
        self.log(
            "val/rec_loss", self.loss.reconstruction(images, reconstructions.float(), weights), sync_dist=True
        )
        psnr = peak_signal_to_noise(images, reconstructions.float()).mean()
        self.log("val/psnr", psnr.float(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the autoencoder (with codebook and s) and, if there is one, the discriminator."""
        own = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        if self.loss.logvar.requires_grad:
            own.append(self.loss.logvar)
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

    # Randomness and batches ---------------------------------------------------------------------------------

    def _generator(self, purpose: int) -> torch.Generator:
        words = np.random.SeedSequence((self.seed, self.batches_done, purpose)).generate_state(2)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def _posterior_noise(self, images: Tensor) -> Tensor | None:
        if self.loss.kind == "vq":
            return None
        rows, rank = len(images), self.global_rank
        side = [size // self.factor for size in images.shape[-2:]]
        shape = (rows * self.trainer.world_size, self.vae.config.latent_channels, *side)
        return torch.randn(shape, generator=self._generator(_NOISE))[rank * rows : (rank + 1) * rows].to(
            images.device
        )

    def read_batch(self, batch: Any, resize: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return images, condition and weights of a batch, resized when asked for.

        Raises:
            InputError: When the images are not [B, C, H, W] of the autoencoder's channels, or no multiple
                of f.
        """
        condition = weights = None
        if isinstance(batch, Mapping):
            images, condition, weights = batch["image"], batch.get("condition"), batch.get("weight")
        else:
            images = batch if isinstance(batch, Tensor) else batch[0]
        channels = self.vae.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputError(
                f"images must be [B, {channels}, H, W], got {tuple(images.shape)}; convert them to RGB"
            )
        if resize and self.resize_range is not None:
            images, condition = self._resized(images), None if condition is None else self._resized(condition)
        if any(size % self.factor for size in images.shape[-2:]):
            side = "x".join(map(str, images.shape[-2:]))
            raise InputError(
                f"the image size {side} is not a multiple of f = {self.factor}; resize or crop the images"
            )
        return images, condition, weights

    def _resized(self, images: Tensor) -> Tensor:
        drawn = torch.randint(len(self.sizes), (), generator=self._generator(_RESIZE))
        # The first batches take the largest size, so that memory runs out at once or never.
        side = self.sizes[-1 if self.batches_done < 4 else int(drawn)]
        return F.interpolate(images, (side, side), mode="bicubic", align_corners=False).clamp(-1, 1)


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


def _sizes(resize_range: tuple[int, int], factor: int) -> list[int]:
    low, high = resize_range
    step = max(16, factor)
    check_number("resize_range[0]", low, low=step, high=high, integer=True)
    if low % step or high % step:
        raise InputError(f"resize_range must hold multiples of {step}, got {resize_range}")
    return list(range(low, high + 1, step))
