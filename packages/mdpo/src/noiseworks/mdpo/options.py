"""The options of decoding, data, selection and training; nothing heavy is imported."""

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from cyclopts import Parameter
from noiseworks.core.artifacts import HOST_FOLDER, FolderKind
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Spread, above, at_least, at_most, whole_numbers
from noiseworks.kits.training import Fit

Confidence = Literal["llada", "entropy", "topk_margin", "random"]
Remask = Literal["rcr", "low_confidence"]
Track = Literal["latest", "max", "min"]
AdvantageKind = Literal["diff+future", "diff", "future", "step", "final"]
KLKind = Literal["k1", "k2", "k3"]
Objective = Literal["mdpo", "diffu_grpo", "sft"]
Task = Literal["countdown", "math", "math500", "sudoku", "rows"]
RewardName = Literal["math", "countdown", "sudoku"]
BlockLengths = Annotated[tuple[int, ...] | None, Parameter(converter=whole_numbers, n_tokens=1)]
ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj")
# What a run leaves in `model`: a whole model, or peft's adapter with its page.
MODEL_FOLDER = FolderKind(None, (*HOST_FOLDER.files, "adapter_config.json", "README.md"))
_SCHEDULE = re.compile(r"even|linear|cosine|log|exp|dream|pow\d+(\.\d+)?")


@dataclass(frozen=True)
class Decoding(Options):
    """How a completion is decoded.

    Attributes:
        gen_length: L, tokens generated.
        block_length: B, tokens of a block; must divide L.
        steps: T, network calls; must be a multiple of the number of blocks.
        temperature: Of the draws; 0 takes the likeliest token.
        schedule: linear, cosine, pow2 (or another power), log or exp: how many tokens are revealed when.
        confidence: Score that orders positions: llada (probability of the token), entropy (negative),
            topk_margin or random.
        remask: rcr, or low_confidence (the standard sampler).
        track: Which score of a position RCR keeps: the latest prediction's (the authors' code), or the largest
            or smallest so far.
        top_p: Draw only from the smallest set of likeliest tokens that reaches this probability.
        top_k: Draw only from this many likeliest tokens.
    """

    gen_length: Annotated[int, at_least(1)] = 128
    block_length: Annotated[int, at_least(1)] = 128
    steps: Annotated[int, at_least(1)] = 128
    temperature: Annotated[float, at_least(0)] = 0.0
    schedule: str = "linear"
    confidence: Confidence = "llada"
    remask: Remask = "rcr"
    track: Track = "latest"
    top_p: Annotated[float | None, above(0), at_most(1)] = None
    top_k: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse lengths that blocks and steps do not divide, and unknown schedules.

        Raises:
            InputError: Naming the values.
        """
        if self.gen_length % self.block_length:
            raise InputError(
                f"gen_length must be a multiple of block_length, got {self.gen_length} and {self.block_length}"
            )
        if self.steps % self.blocks:
            raise InputError(
                f"steps must be a multiple of the {self.blocks} blocks, got {self.steps}; "
                f"use {max(1, round(self.steps / self.blocks)) * self.blocks}"
            )
        if not _SCHEDULE.fullmatch(self.schedule):
            raise InputError(
                f"unknown schedule {self.schedule!r}; use even, linear, cosine, log, exp, dream or pow2"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks, L / B."""
        return self.gen_length // self.block_length

    def reveal_counts(self) -> list[int]:
        """Return k_t for the steps of one block: how many tokens become final at each."""
        from noiseworks.kits.masked_lm import transfer_schedule

        return [
            int(k) for k in transfer_schedule(self.block_length, self.steps // self.blocks, self.schedule)
        ]


@dataclass(frozen=True)
class RolloutDecoding(Decoding):
    """How rollouts are decoded; the defaults are those of the authors' training command.

    Attributes:
        gen_length: L, tokens generated.
        block_length: B, tokens of a block; must divide L.
        steps: T, network calls; must be a multiple of the number of blocks.
        temperature: Of the draws, above 0 unless the objective is sft.
        remask: rcr, or low_confidence (the standard sampler).
    """

    gen_length: Annotated[int, at_least(1)] = 512
    block_length: Annotated[int, at_least(1)] = 512
    temperature: Annotated[float, at_least(0)] = 0.4
    remask: Remask = "low_confidence"


@dataclass(frozen=True)
class Problems(Options):
    """The task and its data.

    Attributes:
        data: A .jsonl, .json or .csv file, or testbed:countdown.
        task: countdown reads input and output, math and math500 problem and answer, sudoku puzzle and solution; rows
            takes rows with a prompt as they are.
        reward: A bundled reward instead of the task's own: math, countdown or sudoku; 1 or more is right.
        num: Prompts taken from the data; by default all, of the testbed 256.
    """

    data: str = "testbed:countdown"
    task: Task = "countdown"
    reward: RewardName | None = None
    num: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse a task without a reward, and tasks that the testbed lacks.

        Raises:
            InputError: Naming the task.
        """
        if self.task == "rows" and self.reward is None:
            raise InputError("task rows has no reward of its own; name one with reward")
        if self.data == "testbed:countdown" and self.task != "countdown":
            raise InputError(
                f"testbed:countdown has problems of the task countdown alone, got {self.task!r}; name a file"
            )

    @property
    def reward_name(self) -> str:
        """The reward that counts."""
        return self.reward or {"math500": "math"}.get(self.task, self.task)


@dataclass(frozen=True)
class Batching(Options):
    """How prompts go through the model.

    Attributes:
        batch_size: Prompts a forward.
        adapter: LoRA adapters that train left: a directory or a hub id.
        seed: Of sampling, of block lengths, and of the testbed's problems.
    """

    batch_size: Annotated[int, at_least(1)] = 64
    adapter: str | None = None
    seed: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class MDPOConfig(Fit):
    """What a training run does; the defaults are those of the authors' training command, unless said otherwise.

    Attributes:
        decoding: Rollouts: length, blocks, steps, temperature, sampler.
        max_steps: Rollout rounds of the run, with num_iterations optimiser steps each; by default one epoch.
        batch_size: Prompts of a round, over all processes.
        num_generations: G, rollouts a prompt, at least 2.
        sample_train_steps: K, denoising steps that are trained on.
        num_iterations: Optimiser steps on the same rollouts.
        objective: mdpo, or a baseline on the same loop: diffu_grpo (final reward, fully masked completion) or
            sft (LLaDA's loss on the data column answer).
        advantage: Which return; final is the terminal-reward ablation.
        confidence_weights: Whether tokens are weighted by their confidence.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        warmup_steps: Optimiser steps of linear warm-up; constant afterwards.
        max_grad_norm: Gradients are scaled down to this norm.
        clip: Of the ratio.
        beta: Weight of the KL term; 0 needs no reference model.
        kl: Its estimator.
        reference_sync_every: Rounds after which the reference moves towards the policy; 0 is never.
        reference_mix: Share of the policy in it.
        max_prompt_length: Longer prompts are left out.
        block_lengths: Block lengths such as 32,512, drawn anew for each prompt; by default the decoding's.
        select: Whether each epoch trains only on prompts that the model over-denoises.
        selection_temperature: Temperature of the selection's decoding (the authors: 0, and 0.1 for Dream).
        lora_rank: Rank of LoRA adapters; 0 trains all weights.
        lora_alpha: Their scale.
        lora_dropout: Their dropout.
        lora_targets: Linear layers that get them.
        gradient_checkpointing: Whether blocks are computed again in the backward pass instead of kept.
        prompt_mask_prob: Share of prompt tokens that diffu_grpo masks.
        rollout_rows: Completions in one forward of a rollout.
        micro_batch_prompts: Prompts whose rollouts share one forward and backward.
        eval_every: Rounds between two evaluations; 0 is never.
        reward_time_limit: Seconds a reward function may take for one batch.
        log_every: Rounds between two rows of metrics.csv.
    """

    FREE = Fit.FREE | {"max_steps", "eval_every"}  # rates are constant, so a run may be made longer

    decoding: Spread[RolloutDecoding] = field(default_factory=RolloutDecoding)
    max_steps: Annotated[int | None, at_least(1)] = None
    batch_size: Annotated[int, at_least(1)] = 16
    num_generations: Annotated[int, at_least(2)] = 8
    sample_train_steps: Annotated[int, at_least(1)] = 8
    num_iterations: Annotated[int, at_least(1)] = 1
    objective: Objective = "mdpo"
    advantage: AdvantageKind = "diff+future"
    confidence_weights: bool = True
    learning_rate: Annotated[float, above(0)] = 7e-7
    weight_decay: Annotated[float, at_least(0)] = 0.0
    warmup_steps: Annotated[int, at_least(0)] = 0
    max_grad_norm: Annotated[float | None, above(0)] = 1.0
    clip: Annotated[float, above(0)] = 0.2
    beta: Annotated[float, at_least(0)] = 0.02
    kl: KLKind = "k2"
    reference_sync_every: Annotated[int, at_least(0)] = 0
    reference_mix: Annotated[float, at_least(0), at_most(1)] = 0.6
    max_prompt_length: Annotated[int, at_least(1)] = 320
    block_lengths: Annotated[BlockLengths, at_least(1)] = None
    select: bool = False
    selection_temperature: Annotated[float, at_least(0)] = 0.0
    lora_rank: Annotated[int, at_least(0)] = 0
    lora_alpha: Annotated[float, at_least(0)] = 64.0
    lora_dropout: Annotated[float, at_least(0), at_most(1)] = 0.05
    lora_targets: tuple[str, ...] = ADAPTER_TARGETS
    gradient_checkpointing: bool = False
    prompt_mask_prob: Annotated[float, at_least(0), at_most(1)] = 0.15
    rollout_rows: Annotated[int, at_least(1)] = 64
    micro_batch_prompts: Annotated[int, at_least(1)] = 1
    eval_every: Annotated[int, at_least(0)] = 0
    reward_time_limit: Annotated[float, above(0)] = 60.0
    log_every: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse options that do not fit each other.

        Raises:
            InputError: Naming them.
        """
        super().check()
        check_number(
            "sample_train_steps", self.sample_train_steps, low=1, high=self.decoding.steps, integer=True
        )
        if self.objective != "sft" and self.decoding.temperature == 0:
            raise InputError("temperature must be above 0 in training, got 0: rollouts must differ, use 0.4")
        if self.reference_sync_every and (self.lora_rank or not self.beta):
            raise InputError("reference_sync_every needs beta above 0 and no LoRA; set it to 0")
        for length in self.block_lengths or ():
            check_number("block_lengths", length, low=1, high=self.decoding.gen_length, integer=True)
            replace(self.decoding, block_length=length)
