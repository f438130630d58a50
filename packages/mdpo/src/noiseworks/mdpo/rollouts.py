"""Batched rollouts with a reward for every denoising step, and what is measured on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.noise import mix64
from noiseworks.kits.masked_lm import HostSpec
from noiseworks.mdpo.options import Decoding
from noiseworks.mdpo.prompts import Row, columns_of, decode_completions, encode_prompts
from noiseworks.mdpo.remasking import rcr_generate
from noiseworks.mdpo.results import Evaluation
from noiseworks.mdpo.rewards import RewardFunction, score_completions
from noiseworks.mdpo.trace import Trace, over_denoised
from torch import Tensor, nn

CORRECT = 1.0
"""Reward from which on a completion counts as right."""


@dataclass(frozen=True)
class Scoring:
    """What turns predictions into rewards.

    Attributes:
        tokenizer: The model's tokenizer.
        spec: The host's contract.
        functions: Reward functions.
        weights: One weight a function, by default 1 each.
        time_limit: Seconds a function may take for one batch of predictions.
    """

    tokenizer: Any
    spec: HostSpec
    functions: Sequence[RewardFunction]
    weights: Sequence[float] | None = None
    time_limit: float = 60.0

    def __call__(self, rows: Sequence[Row], predictions: Tensor) -> Tensor:
        """Return the reward of every prediction, float64 [B, T], for ids [T, B, L] and one data row each."""
        steps, batch, length = predictions.shape
        texts = decode_completions(self.tokenizer, self.spec, predictions.transpose(0, 1).reshape(-1, length))
        owners: dict[int, int] = {}
        groups = [owners.setdefault(id(row), len(owners)) for row in rows for _ in range(steps)]
        prompts = [row["prompt"] for row in rows for _ in range(steps)]
        scores = score_completions(
            self.functions,
            prompts,
            texts,
            columns_of(rows, steps),
            groups=groups,
            weights=self.weights,
            time_limit=self.time_limit,
        )
        return torch.tensor(scores, dtype=torch.float64).reshape(batch, steps)


@dataclass(frozen=True)
class Rollouts:
    """Completions of B prompts (or copies of prompts) with their record.

    Attributes:
        prompt: Left-padded prompts, int64 [B, P].
        prompt_mask: 1 for real tokens, [B, P].
        trace: What every step read, predicted and was sure of.
        rewards: Reward of the full prediction at every step, float64 [B, T].
        calls: Network calls.
    """

    prompt: Tensor
    prompt_mask: Tensor
    trace: Trace
    rewards: Tensor
    calls: int

    @property
    def right(self) -> Tensor:
        """Which predictions are right, bool [B, T]."""
        return self.rewards >= CORRECT

    @property
    def over_denoised(self) -> Tensor:
        """Which rows were right at some step and wrong at the last one, bool [B]."""
        return over_denoised(self.right.T)


def row_seeds(seed: int, count: int) -> list[int]:
    """Return the sampling seeds of `count` rows."""
    return [mix64(seed, index) >> 2 for index in range(count)]


def roll_out(
    model: nn.Module,
    scoring: Scoring,
    rows: Sequence[Row],
    decoding: Decoding,
    *,
    seeds: Sequence[int],
    copies: int = 1,
    max_rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Rollouts:
    """Decode `copies` completions of every row, `max_rows` in one forward, and score every step.

    Args:
        model: The model, in evaluation mode.
        scoring: Rewards.
        rows: Data rows.
        decoding: How to decode.
        seeds: One sampling seed a completion, len(rows) · copies.
        copies: G, completions of one prompt, which stay together.
        max_rows: Completions a forward.
        progress: Called with completions done and in all.
    """
    check_number("max_rows", max_rows, low=1, integer=True)
    device = next(model.parameters()).device
    repeated = [row for row in rows for _ in range(copies)]
    prompt, mask = (part.to(device) for part in encode_prompts(scoring.tokenizer, scoring.spec, rows))
    prompt, mask = prompt.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
    traces, calls = [], 0
    for start in range(0, len(repeated), max_rows):
        part = slice(start, start + max_rows)
        made = rcr_generate(
            model,
            prompt[part],
            decoding,
            attention_mask=mask[part],
            spec=scoring.spec,
            seeds=seeds[part],
            record=True,
        )
        traces.append(made.trace)
        calls += made.calls
        if progress is not None:
            progress(min(start + max_rows, len(repeated)), len(repeated))
    trace = join_traces(traces)
    return Rollouts(prompt, mask, trace, scoring(repeated, trace.predictions), calls)


def join_traces(traces: Sequence[Trace]) -> Trace:
    """Return traces of the same steps and length as one, along the batch."""
    # Mixed precision may be on around a rollout; the record is float16 whatever the model runs in.
    with torch.autocast("cpu", enabled=False):
        joined = {
            name: torch.cat([getattr(trace, name) for trace in traces], dim=1)
            for name in ("inputs", "predictions", "scores")
        }
    return replace(traces[0], **joined, final=torch.cat([trace.final for trace in traces]))


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Return rollouts of the same steps and length as one; prompts get a common left padding."""
    width = max(part.prompt.shape[1] for part in parts)
    prompts, masks = [], []
    for part in parts:
        extra = width - part.prompt.shape[1]
        # The mask hides these positions, so any token does.
        prompts.append(torch.cat([part.prompt[:, :1].expand(-1, extra), part.prompt], dim=1))
        masks.append(torch.nn.functional.pad(part.prompt_mask, (extra, 0)))
    return Rollouts(
        torch.cat(prompts),
        torch.cat(masks),
        join_traces([part.trace for part in parts]),
        torch.cat([part.rewards for part in parts]),
        sum(part.calls for part in parts),
    )


def summarize(rollouts: Rollouts) -> Evaluation:
    """Return the figures of rollouts with one completion a prompt."""
    right = rollouts.right
    return Evaluation(
        accuracy=right[:, -1].double().mean().item(),
        any_step=right.any(dim=1).double().mean().item(),
        over_denoised=rollouts.over_denoised.double().mean().item(),
        reward=rollouts.rewards[:, -1].mean().item(),
        prompts=len(right),
        calls=right.shape[1],
    )
