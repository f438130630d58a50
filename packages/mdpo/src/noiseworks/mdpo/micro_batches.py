"""Rollouts to micro-batches: which positions are predicted from which input, and with which loss.

A micro-batch is one forward and backward. Gradients add up over all micro-batches of a round, so that each
objective's loss is the mean over prompts (and over the K chosen steps).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from noiseworks.core import noise
from noiseworks.mdpo.advantages import compute_advantages, select_steps
from noiseworks.mdpo.objective import LossStats, diffu_grpo_loss, mdpo_loss, sft_loss
from noiseworks.mdpo.options import MDPOConfig
from noiseworks.mdpo.policy import masked_positions
from noiseworks.mdpo.rollouts import Rollouts
from torch import Tensor


class Inputs(NamedTuple):
    """What the policy is asked: arguments of `Policy.forward`."""

    ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    temperature: float


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward.

    Attributes:
        inputs: Arguments of `Policy.forward`.
        groups: (prompts, G); the rows are prompts x G.
        advantages: Â of each row, [B]; for sft the masking probability t.
        mask: Which positions count, bool [B, n].
        weight: Confidence of each target, [B, n], or None.
        share: Weight of this micro-batch in the round's loss; shares of a full round add up to 1.
        old: Log-probabilities under the policy that drew the rollouts, once they are known.
    """

    inputs: Inputs
    groups: tuple[int, int]
    advantages: Tensor
    mask: Tensor
    weight: Tensor | None
    share: float
    old: Tensor | None = None

    def with_old(self, logp: Tensor) -> "MicroBatch":
        """Return the micro-batch with the log-probabilities of the policy that drew it."""
        return replace(self, old=logp.detach())


def at_steps(tensor: Tensor, steps: Tensor) -> Tensor:
    """Return, for each row, its own step of a record [T, B, L]: [B, L]."""
    return tensor[steps, torch.arange(tensor.shape[1])]


def informative_groups(advantages: Tensor, size: int) -> list[Tensor]:
    """Return the prompts (first dimension) with any advantage that is not 0, `size` at a time."""
    found = advantages.flatten(1).abs().amax(dim=1).nonzero()[:, 0]
    return list(found.split(size)) if len(found) else []


def mdpo_micro_batches(rollouts: Rollouts, config: MDPOConfig) -> Iterator[MicroBatch]:
    """Yield the K chosen steps of every prompt whose rollouts differ in reward.

    Args:
        rollouts: Prompts x G rows.
        config: G, K, advantage, weights.
    """
    G, K = config.num_generations, config.sample_train_steps
    rewards = rollouts.rewards.reshape(-1, G, rollouts.rewards.shape[-1])
    advantages = compute_advantages(rewards, config.advantage)
    steps = select_steps(advantages, K)
    for chosen in informative_groups(advantages, config.micro_batch_prompts):
        rows = (chosen[:, None] * G + torch.arange(G)).flatten()
        for k in range(K):
            step = steps[chosen, k]
            value = advantages[chosen, :, step].flatten()
            share = len(chosen) / (len(rewards) * K)
            yield _step_batch(rollouts, rows, step.repeat_interleave(G), value, share, config)


def _step_batch(
    rollouts: Rollouts, rows: Tensor, step: Tensor, value: Tensor, share: float, config: MDPOConfig
) -> MicroBatch:
    trace, device = rollouts.trace, rollouts.prompt.device
    x, made, score = (
        at_steps(part[:, rows], step).to(device) for part in (trace.inputs, trace.predictions, trace.scores)
    )
    positions, mask = masked_positions(x == trace.mask_id)
    return MicroBatch(
        _behind(rollouts, rows, x, positions, made, config.decoding.temperature),
        (len(rows) // config.num_generations, config.num_generations),
        value.to(device),
        mask,
        score.gather(1, positions).float() if config.confidence_weights else None,
        share,
    )


def _behind(
    rollouts: Rollouts, rows: Tensor, x: Tensor, positions: Tensor, targets: Tensor, temperature: float
) -> Inputs:
    rows = rows.to(rollouts.prompt.device)
    prompt, mask = rollouts.prompt[rows], rollouts.prompt_mask[rows]
    return Inputs(
        torch.cat([prompt, x.long()], dim=1),
        torch.cat([mask, torch.ones_like(x).to(mask)], dim=1),
        positions + prompt.shape[1],
        targets.gather(1, positions).long(),
        temperature,
    )


def diffu_grpo_micro_batches(
    rollouts: Rollouts, config: MDPOConfig, seed: int, row_ids: Tensor | None = None
) -> Iterator[MicroBatch]:
    """Yield the fully masked completions behind randomly masked prompts, with final-reward advantages.

    Args:
        rollouts: Prompts x G rows.
        config: G and the share of masked prompt tokens.
        seed: Of the prompt masks.
        row_ids: What the masks of each row depend on besides, int64 [B]; by default the row's place.
    """
    G, trace = config.num_generations, rollouts.trace
    final = rollouts.rewards[:, -1].reshape(-1, G, 1)
    advantages = compute_advantages(final, "final")[..., 0]
    for chosen in informative_groups(advantages, config.micro_batch_prompts):
        rows = (chosen[:, None] * G + torch.arange(G)).flatten()
        targets = trace.final[rows].to(rollouts.prompt.device)
        everywhere = torch.arange(targets.shape[1], device=targets.device).expand(len(rows), -1)
        x = torch.full_like(targets, trace.mask_id)
        inputs = _behind(rollouts, rows, x, everywhere, targets, config.decoding.temperature)
        real = rollouts.prompt_mask[rows.to(targets.device)].bool()
        keys = noise.SeedSpec(seed).keys(rows if row_ids is None else row_ids[rows]).to(targets.device)
        drawn = noise.bernoulli(keys, config.prompt_mask_prob, real.shape[1:])
        # Counted from the first token of the prompt, so that padding to other rows changes no mask.
        drop = drawn.gather(1, (real.long().cumsum(dim=1) - 1).clamp(min=0)) & real
        ids = inputs.ids.clone()
        ids[:, : real.shape[1]].masked_fill_(drop, trace.mask_id)
        yield MicroBatch(
            inputs._replace(ids=ids),
            (len(chosen), G),
            advantages[chosen].flatten().to(targets.device),
            torch.ones_like(everywhere, dtype=torch.bool),
            None,
            len(chosen) / len(advantages),
        )


def sft_micro_batch(
    prompt: Tensor,
    prompt_mask: Tensor,
    answer: Tensor,
    mask_id: int,
    seed: int,
    share: float,
    row_ids: Tensor | None = None,
) -> MicroBatch:
    """Return a supervised micro-batch: the answer masked with a probability t ~ U(0, 1) a row (LLaDA).

    Args:
        prompt: Left-padded prompts, int64 [B, P].
        prompt_mask: [B, P].
        answer: Answers filled up with EOS, int64 [B, L].
        mask_id: Id of [MASK].
        seed: Of t and the masks.
        share: Weight in the round's loss.
        row_ids: What t and the masks of each row depend on besides, int64 [B]; by default the row's place.
    """
    ids = torch.arange(len(answer)) if row_ids is None else row_ids
    keys = noise.SeedSpec(seed).keys(ids).to(answer.device)
    t = noise.uniform(keys, (1,))[:, 0].clamp(min=1e-3)
    x, mask = noise.absorbing_mask(answer, t, keys, mask_id=mask_id, counter0=1)
    everywhere = torch.arange(answer.shape[1], device=answer.device).expand_as(answer)
    inputs = Inputs(
        torch.cat([prompt, x], dim=1),
        torch.cat([prompt_mask, torch.ones_like(x)], dim=1),
        everywhere + prompt.shape[1],
        answer,
        1.0,
    )
    return MicroBatch(inputs, (len(answer), 1), t, mask, None, share)


def loss_of(
    batch: MicroBatch, logp: Tensor, logp_ref: Tensor | None, config: MDPOConfig
) -> tuple[Tensor, LossStats | None]:
    """Return a micro-batch's loss under the configured objective, before its share, and its statistics."""
    if config.objective == "sft":
        return sft_loss(
            logp, batch.mask, batch.advantages, torch.full_like(batch.advantages, logp.shape[1])
        ), None
    shape = (*batch.groups, logp.shape[1])
    parts = [None if part is None else part.reshape(shape) for part in (logp, batch.old, logp_ref)]
    advantages = batch.advantages.reshape(batch.groups)
    if config.objective == "diffu_grpo":
        return diffu_grpo_loss(*parts, advantages, clip=config.clip, beta=config.beta)
    return mdpo_loss(
        *parts,
        advantages,
        batch.mask.reshape(shape),
        None if batch.weight is None else batch.weight.reshape(shape),
        clip=config.clip,
        beta=config.beta,
        kl=config.kl,
        length=config.decoding.gen_length,
    )
