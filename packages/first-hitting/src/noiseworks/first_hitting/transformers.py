"""First-hitting sampling on LLaDA- and Dream-style models of transformers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.sampling import Sample, Settings, fhs_sample
from noiseworks.kits.masked_lm import HostSpec, aligned_logits, check_prompt, detect_host, pad_prompts
from torch import Tensor, nn


def host_denoiser(model: nn.Module, spec: HostSpec, padding: Tensor | None = None) -> Denoiser:
    """Return the denoiser of a model; the output head runs only at the positions asked for.

    Args:
        model: A LLaDA or Dream model.
        spec: Its contract.
        padding: 1 for tokens and 0 for padding, [B, L]; only for calls on the whole batch.
    """

    def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        mask = padding
        if mask is not None and len(mask) != len(tokens):
            raise InputError("rows left the batch, but the padding mask is of the whole batch")
        return aligned_logits(model, tokens, mask, spec=spec, positions=positions)

    return denoise


class FirstHittingGenerator:
    """Completes prompts with a masked language model by first-hitting sampling.

    Args:
        model: A LLaDA or Dream model, adapted by peft or not.
        tokenizer: Its tokenizer.
        spec: Its contract, by default detected.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, spec: HostSpec | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.spec = detect_host(model, tokenizer) if spec is None else spec

    def settings(self, **options: Any) -> Settings:
        """Return `Settings` for this model; the options are its fields other than `mask_id`."""
        return Settings(mask_id=self.spec.mask_id, **options)

    def generate(
        self,
        prompts: Sequence[str],
        gen_length: int,
        settings: Settings | None = None,
        *,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the completions as text, up to the first end of text.

        Args:
            prompts: Prompts; of different lengths, if wanted.
            gen_length: Tokens to generate.
            settings: How to sample, by default exactly. Blocks are counted from the first generated token.
            generator: Where the rows' seeds are drawn from.
            seeds: One seed a prompt instead.
        """
        ids = [self.tokenizer(text)["input_ids"] for text in prompts]
        input_ids, mask = pad_prompts(ids, self.spec.pad_id)
        sample = self.complete(input_ids, mask, gen_length, settings, generator=generator, seeds=seeds)
        ends, texts = set(self.spec.eos_ids), []
        for row in sample.tokens[:, input_ids.shape[1] :].tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            texts.append(self.tokenizer.decode(row[:stop]))
        return texts

    def complete(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        gen_length: int,
        settings: Settings | None = None,
        *,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Sample:
        """Return prompts and completions as tokens.

        Args:
            input_ids: int64 [B, P], left padded where they differ in length.
            attention_mask: 1 for tokens and 0 for padding, [B, P].
            gen_length: Tokens to generate.
            settings: See `generate`.
            generator: See `generate`.
            seeds: See `generate`.
        """
        settings = self.settings() if settings is None else settings
        check_prompt(input_ids, self.spec, gen_length)
        device = next(self.model.parameters()).device
        input_ids = input_ids.to(device)
        masks = input_ids.new_full((len(input_ids), gen_length), self.spec.mask_id)
        padding = None
        if attention_mask is not None and not bool(attention_mask.all()):
            padding = torch.cat([attention_mask.to(masks), torch.ones_like(masks)], dim=1)
        offset = input_ids.shape[1]
        inner = host_denoiser(self.model, self.spec, padding)

        def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
            # The sampler sees the completion alone, so that seeds and blocks do not depend on the prompt's length.
            return inner(torch.cat([input_ids, tokens], dim=1), times, positions + offset)

        sample = fhs_sample(denoise, masks, settings, generator=generator, seeds=seeds)
        given = torch.full(input_ids.shape, torch.nan, dtype=torch.float64, device=device)
        return replace(
            sample,
            tokens=torch.cat([input_ids, sample.tokens], dim=1),
            times=torch.cat([given, sample.times], dim=1),
        )
