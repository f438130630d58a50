"""Training of the transformers: latent diffusion and rectified flow, with Muon for the matrices of the blocks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.optimizers import muon_with_adamw
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer, draw_noise
from torch import Tensor, nn

LONG_TOKENS = 256  # the pipeline's default `max_sequence_length`
LONG_SHARE = 0.06  # share of batches trained with it, which cost three times as much


class ThreeTextConditioner(Conditioner):
    """Captions through two projected CLIP encoders and a T5 encoder; the empty caption is the null one.

    Batch keys: `input_ids`, int64 `[B, L]`, the same for both CLIP encoders, and `t5_ids`, int64 `[B, M]`.
    The CLIP tokens are the last but one hidden states side by side, padded to T5's width; T5's tokens follow.
    The pooled vector is the two projections side by side. There are no attention masks, as in the pipeline.

    Args:
        text_encoder: First CLIP encoder.
        text_encoder_2: Second CLIP encoder.
        text_encoder_3: T5 encoder.
        tokenizer: The tokenizer of both CLIP encoders.
        tokenizer_3: T5's tokenizer.
    """

    kind = "crossattn"
    default_drop = 0.1

    def __init__(
        self,
        text_encoder: nn.Module,
        text_encoder_2: nn.Module,
        text_encoder_3: nn.Module,
        tokenizer: Any,
        tokenizer_3: Any,
    ) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.text_encoder_3 = text_encoder_3
        for name, one in (("null_ids", tokenizer), ("null_t5_ids", tokenizer_3)):
            ids = one([""], padding="max_length", max_length=one.model_max_length, return_tensors="pt")
            self.register_buffer(name, ids["input_ids"][0], persistent=False)

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return tokens `[B, L + M, D]` in `crossattn` and the pooled vectors `[B, P]` in `adm`."""
        ids, t5_ids = batch["input_ids"], batch["t5_ids"]
        if drop is not None:
            null = F.pad(self.null_t5_ids, (0, t5_ids.shape[1] - len(self.null_t5_ids)))
            ids = torch.where(drop[:, None], self.null_ids, ids)
            t5_ids = torch.where(drop[:, None], null, t5_ids)
        outputs = [
            encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        more = self.text_encoder_3(t5_ids)[0]
        tokens = F.pad(tokens, (0, more.shape[-1] - tokens.shape[-1]))
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return Condition(crossattn=torch.cat([tokens, more], dim=1), adm=pooled)


class TransformerTrainer(LatentDiffusionTrainer):
    """Trains a transformer as `LatentDiffusionTrainer` does a U-Net, with two optimisers stepped by hand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Take one step and return its loss."""
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        self.update_ema()
        return loss.detach()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices of the transformer's blocks, and AdamW for the rest, tables of classes too."""
        tables = {id(one.weight) for one in self.unet.modules() if isinstance(one, nn.Embedding)}
        blocks = {id(p) for p in self.unet.transformer_blocks.parameters() if p.ndim == 2} - tables
        trained = [p for one in self.trained_modules().values() for p in one.parameters() if p.requires_grad]
        inner = [p for p in trained if id(p) in blocks]
        outer = [p for p in trained if id(p) not in blocks]
        return muon_with_adamw(inner, outer, self.base_rate)


class RectifiedFlowTrainer(TransformerTrainer):
    """Trains a transformer to predict the velocity ε - z on the line (1 - σ) z + σ ε, σ = sigmoid(N(0, 1)).

    Source: Stable Diffusion 3, section 3 (rectified flow with logit-normal timesteps).
    """

    def diffusion_loss(
        self,
        batch: Mapping[str, Any],
        generator: torch.Generator,
        *,
        condition_drop: float = 0.0,
        ema: bool = False,
    ) -> Tensor:
        """Return the loss of one batch.

        Args:
            batch: Cached posterior (`mean`, `logvar`) or `latents`, `input_ids` and `t5_ids`.
            generator: Source of posterior noise, σ, noise, dropped captions and T5's length.
            condition_drop: Share of rows that get the null condition.
            ema: Whether the averaged weights are used.
        """
        latents = self.raw_latents(batch, generator) * self.scale_factor
        device = latents.device
        sigmas = torch.sigmoid(torch.randn(len(latents), generator=generator, device=device))
        noise, drop = draw_noise(latents, condition_drop, generator)
        if torch.rand((), generator=generator, device=device) < LONG_SHARE:
            ids = batch["t5_ids"]
            batch = {**batch, "t5_ids": F.pad(ids, (0, LONG_TOKENS - ids.shape[1]))}
        condition = self.condition(batch, drop, ema=ema)
        transformer = self.ema["unet"] if ema else self.unet
        line = sigmas.view(-1, 1, 1, 1)
        predicted = transformer(
            hidden_states=(1 - line) * latents + line * noise,
            timestep=1000 * sigmas,
            encoder_hidden_states=condition.crossattn,
            pooled_projections=condition.adm,
            return_dict=False,
        )[0]
        return (predicted.float() - (noise - latents)).square().mean()
