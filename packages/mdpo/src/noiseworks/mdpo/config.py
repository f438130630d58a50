"""The settings of a training run."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.mdpo.advantages import AdvantageKind
from noiseworks.mdpo.objective import KLKind
from noiseworks.mdpo.policy import ADAPTER_TARGETS
from noiseworks.mdpo.remasking import Decoding

Objective = Literal["mdpo", "diffu_grpo", "sft"]


@dataclass(frozen=True)
class MDPOConfig:
    """What a run does; the defaults are those of the authors' training command, unless said otherwise.

    Attributes:
        decoding: Rollouts: length, blocks, steps, temperature (above 0), sampler.
        updates: Rollout rounds of the run (with `num_iterations` optimiser steps each); None is one epoch.
        num_generations: G, rollouts a prompt; at least 2 (the authors: one a GPU).
        prompts_per_update: Prompts of a round and process.
        sample_train_steps: K, denoising steps that are trained on.
        num_iterations: μ, optimiser steps on the same rollouts.
        objective: mdpo, or a baseline on the same loop: diffu_grpo (final reward, fully masked completion) or
            sft (LLaDA's loss on the data column `answer`).
        advantage: Which return; `final` is the terminal-reward ablation.
        confidence_weights: Whether tokens are weighted by their confidence.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        warmup_updates: Optimiser steps of linear warm-up; constant afterwards.
        max_grad_norm: Gradients are scaled down to this norm; None leaves them.
        clip: ε_c of the ratio.
        beta: Weight of the KL term; 0 needs no reference model.
        kl: Its estimator.
        reference_sync_every: Rounds after which the reference moves towards the policy; 0 is never.
        reference_mix: Share of the policy in it.
        max_prompt_length: Longer prompts are left out.
        block_lengths: Block lengths drawn anew for each prompt; empty uses the one of `decoding`.
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
        checkpoint_every: Rounds between two checkpoints.
        reward_time_limit: Seconds a reward function may take for one batch.
        accelerator: As in Lightning.
        devices: Number of processes.
        strategy: As in Lightning; auto, or ddp for several processes.
        precision: As in Lightning, for example bf16-true.
        seed: Of data order, sampling and dropout.
    """

    decoding: Decoding = field(default_factory=lambda: Decoding(512, 512, 128, 0.4, remask="low_confidence"))
    updates: int | None = None
    num_generations: int = 8
    prompts_per_update: int = 16
    sample_train_steps: int = 8
    num_iterations: int = 1
    objective: Objective = "mdpo"
    advantage: AdvantageKind = "diff+future"
    confidence_weights: bool = True
    learning_rate: float = 7e-7
    weight_decay: float = 0.0
    warmup_updates: int = 0
    max_grad_norm: float | None = 1.0
    clip: float = 0.2
    beta: float = 0.02
    kl: KLKind = "k2"
    reference_sync_every: int = 0
    reference_mix: float = 0.6
    max_prompt_length: int = 320
    block_lengths: tuple[int, ...] = ()
    select: bool = False
    selection_temperature: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 64.0
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ADAPTER_TARGETS
    gradient_checkpointing: bool = False
    prompt_mask_prob: float = 0.15
    rollout_rows: int = 64
    micro_batch_prompts: int = 1
    eval_every: int = 0
    checkpoint_every: int = 10
    reward_time_limit: float = 60.0
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that no run can have."""
        wholes = {
            "num_generations": 2,
            "prompts_per_update": 1,
            "num_iterations": 1,
            "warmup_updates": 0,
            "reference_sync_every": 0,
            "max_prompt_length": 1,
            "lora_rank": 0,
            "rollout_rows": 1,
            "micro_batch_prompts": 1,
            "eval_every": 0,
            "checkpoint_every": 1,
            "devices": 1,
            "seed": 0,
        }
        for name, low in wholes.items():
            check_number(name, getattr(self, name), low=low, integer=True)
        if self.updates is not None:
            check_number("updates", self.updates, low=1, integer=True)
        check_number(
            "sample_train_steps", self.sample_train_steps, low=1, high=self.decoding.steps, integer=True
        )
        for name in ("learning_rate", "clip", "reward_time_limit"):
            check_number(name, getattr(self, name), low=0, low_open=True)
        for name in ("weight_decay", "beta", "lora_alpha", "selection_temperature"):
            check_number(name, getattr(self, name), low=0)
        for name in ("lora_dropout", "prompt_mask_prob", "reference_mix"):
            check_number(name, getattr(self, name), low=0, high=1)
        if self.max_grad_norm is not None:
            check_number("max_grad_norm", self.max_grad_norm, low=0, low_open=True)
        check_choice("objective", self.objective, get_args(Objective))
        check_choice("advantage", self.advantage, get_args(AdvantageKind))
        check_choice("kl", self.kl, get_args(KLKind))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.objective != "sft" and self.decoding.temperature == 0:
            raise InputError("temperature must be above 0 in training, got 0: rollouts must differ, use 0.4")
        if self.reference_sync_every and (self.lora_rank or not self.beta):
            raise InputError("reference_sync_every needs beta above 0 and no LoRA; set it to 0")
        for length in self.block_lengths:
            check_number("block_lengths", length, low=1, high=self.decoding.gen_length, integer=True)
            replace(self.decoding, block_length=length)
