"""Rectified-flow training of `shapes-sd3` with the two text encoders of `StableDiffusion3Pipeline`."""

from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.ldm.conditioning import Condition, Conditioner
from noiseworks.ldm.diffusion import LatentDiffusionTrainer
from torch import Tensor, nn

T5_TOKENS = 16  # zeros that stand for the absent T5 encoder: `max_sequence_length=16`
T5_TOKENS_DEFAULT = 256  # and as many when the pipeline is called without it
DEFAULT_SHARE = 0.06  # share of batches trained with the long run of zeros, which cost three times as much


class TwoTextConditioner(Conditioner):
    """Captions through two `CLIPTextModelWithProjection`; the empty caption is the null one.

    Batch key: `input_ids`, int64 `[B, L]`, the same for both encoders. Tokens are the last but one hidden
    states side by side, the pooled vector the two projections side by side.

    Args:
        text_encoder: First encoder.
        text_encoder_2: Second encoder.
        tokenizer: The tokenizer of both.
    """

    kind = "crossattn"
    default_drop = 0.1

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        null = tokenizer(
            [""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        self.register_buffer("null_ids", null["input_ids"][0], persistent=False)

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return tokens `[B, L, D]` in `crossattn` and the pooled vectors `[B, P]` in `adm`."""
        ids = batch["input_ids"]
        if drop is not None:
            ids = torch.where(drop[:, None], self.null_ids, ids)
        outputs = [
            encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Condition(crossattn=tokens, adm=torch.cat([output.text_embeds for output in outputs], dim=-1))


class RectifiedFlowTrainer(LatentDiffusionTrainer):
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
    ) -> dict[str, Tensor]:
        """Return the loss of one batch as `loss` and `loss_simple`.

        Args:
            batch: Cached posterior (`mean`, `logvar`) or `latents`, and `input_ids`.
            generator: Source of posterior noise, σ, noise, dropped captions and the length of the zeros.
            condition_drop: Share of rows that get the null condition.
            ema: Whether the averaged weights are used.
        """
        latents = self.raw_latents(batch, generator) * self.scale_factor
        rows, device = len(latents), latents.device
        sigmas = torch.sigmoid(torch.randn(rows, generator=generator, device=device))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        drop = torch.rand(rows, generator=generator, device=device) < condition_drop
        long = bool(torch.rand((), generator=generator, device=device) < DEFAULT_SHARE)
        condition = self.condition(batch, drop, ema=ema)
        zeros = condition.crossattn.new_zeros(
            rows, T5_TOKENS_DEFAULT if long else T5_TOKENS, condition.crossattn.shape[-1]
        )
        transformer = self.ema["unet"] if ema else self.unet
        line = sigmas.view(-1, 1, 1, 1)
        predicted = transformer(
            hidden_states=(1 - line) * latents + line * noise,
            timestep=1000 * sigmas,
            encoder_hidden_states=torch.cat([condition.crossattn, zeros], dim=1),
            pooled_projections=condition.adm,
            return_dict=False,
        )[0]
        loss = (predicted.float() - (noise - latents)).square().mean()
        return {"loss_simple": loss, "loss": loss}
