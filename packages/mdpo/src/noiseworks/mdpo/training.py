"""MDPO training as a loop on Lightning Fabric: roll out, score every step, pick steps, update.

Data order, sampling and dropout are functions of the seed and the round, so a run that is killed and resumed
repeats the rounds of an uninterrupted one bit for bit on the CPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric  # noqa: TID253
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.masked_lm import HostSpec, check_prompt, detect_host
from noiseworks.mdpo.config import MDPOConfig
from noiseworks.mdpo.micro_batches import (
    MicroBatch,
    diffu_grpo_micro_batches,
    loss_of,
    mdpo_micro_batches,
    sft_micro_batch,
)
from noiseworks.mdpo.policy import Policy, Reference, add_lora
from noiseworks.mdpo.prompt_order import PromptOrder
from noiseworks.mdpo.prompts import Row, encode_prompts, prompt_ids
from noiseworks.mdpo.records import MetricsFile, load_checkpoint, save_checkpoint
from noiseworks.mdpo.rewards import RewardFunction
from noiseworks.mdpo.rollouts import (
    Evaluation,
    Rollouts,
    Scoring,
    join_rollouts,
    roll_out,
    row_seeds,
    summarize,
)
from noiseworks.mdpo.selection import Selection, draw_block_lengths, select_over_denoised
from torch import nn

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
# Streams of random numbers.
_ROLLOUT, _MASKS, _DROPOUT, _CHOICE = range(4)


@dataclass(frozen=True)
class TrainResult:
    """What `MDPOTrainer.fit` returns.

    Attributes:
        updates: Rounds done over the whole run.
        reward: Mean final reward of the last round's rollouts.
        evaluation: The last evaluation, if there was one.
        model: Folder of the trained model (or adapter), if the run has a folder.
    """

    updates: int
    reward: float
    evaluation: Evaluation | None
    model: str | None


class MDPOTrainer:
    """Trains a masked diffusion language model on verifiable rewards of its denoising steps.

    Args:
        model: A LLaDA- or Dream-style model, or a peft model around one; changed in place.
        tokenizer: Its tokenizer.
        reward_fns: Reward functions; their (weighted) sum of 1 or more counts as right.
        config: Settings.
        train_data: Rows with `prompt` and the columns that the rewards read (`answer` for sft).
        eval_data: Rows for evaluation.
        reward_weights: One weight a reward function.
        spec: The host's contract; by default detected.
        selection: Prompts selected before, for the first epoch, instead of selecting them now.
        out: Folder of checkpoint, metrics, selections and the trained model; None keeps nothing.

    Raises:
        InputError: When the data is empty or does not fit, or LoRA's layers are not in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        reward_fns: Sequence[RewardFunction],
        config: MDPOConfig,
        train_data: Sequence[Row],
        eval_data: Sequence[Row] = (),
        *,
        reward_weights: Sequence[float] | None = None,
        spec: HostSpec | None = None,
        selection: Selection | None = None,
        out: Path | None = None,
    ) -> None:
        self.config, self.out = config, out
        spec = detect_host(model, tokenizer) if spec is None else spec
        self.scoring = Scoring(tokenizer, spec, reward_fns, reward_weights, config.reward_time_limit)
        kept = self._usable(train_data)
        self.train_data, self.eval_data = [train_data[i] for i in kept], list(eval_data)
        self.given_selection = None if selection is None else self._fitting(selection.among(kept))
        if config.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                targets = config.lora_targets
                model = add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, targets)
        self.fabric = Fabric(
            accelerator=config.accelerator,
            strategy=config.strategy,
            devices=config.devices,
            precision=config.precision,
        )
        if config.devices > 1:
            self.fabric.launch()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = Policy(model, spec)
        parameters = list(self.policy.trainable().values())
        optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        warmup = config.warmup_updates + 1
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warmup))
        self.module = self.fabric.setup_module(self.policy)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        # After the set-up, so that a copy has the same device and precision.
        self.reference = Reference(self.policy) if config.beta and config.objective != "sft" else None
        self.order, self.done = PromptOrder(config.seed), 0

    def _usable(self, rows: Sequence[Row]) -> list[int]:
        """Return the places of the rows whose prompts are short enough; refuse what would stop the run later."""
        limit, length = self.config.max_prompt_length, self.config.decoding.gen_length
        prompts = [prompt_ids(self.scoring.tokenizer, row["prompt"]) for row in rows]
        kept = [i for i, ids in enumerate(prompts) if len(ids) <= limit]
        if not kept:
            raise InputError(
                f"no training prompt has at most {limit} tokens; raise max_prompt_length or give data"
            )
        for i in kept:
            check_prompt(torch.tensor([prompts[i]]), self.scoring.spec, length)
        if self.config.objective == "sft":
            self._check_answers([rows[i] for i in kept])
        return kept

    def _check_answers(self, rows: Sequence[Row]) -> None:
        length = self.config.decoding.gen_length
        for row in rows:
            if "answer" not in row:
                raise InputError(f"objective sft needs the data column 'answer', the data has {sorted(row)}")
            if len(self._answer_ids(row)) > length:
                raise InputError(
                    f"the answer {row['answer']!r} has more than gen_length {length} tokens; raise gen_length"
                )

    def _answer_ids(self, row: Row) -> list[int]:
        return self.scoring.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]

    def _fitting(self, selection: Selection) -> Selection:
        for length in set(selection.block_lengths):
            replace(self.config.decoding, block_length=length)
        return selection

    # --- The loop ---

    def fit(
        self, *, resume: bool = False, progress: Callable[[int, int, str], None] | None = None
    ) -> TrainResult:
        """Run the rounds that are left.

        Args:
            resume: Whether to go on from the folder's checkpoint, if there is one.
            progress: Called with rounds done, rounds in all and a line of figures.

        Raises:
            NonFiniteError: When a loss is NaN or infinite; the last checkpoint stays.
        """
        path = None if self.out is None else self.out / CHECKPOINT
        if resume and path is not None and path.is_file():
            self.load(path)
        metrics = MetricsFile(None if self.out is None else self.out / METRICS, self.done)
        row, evaluation = {"reward": math.nan}, None
        while not self.finished:
            row = self.round()
            if self.config.eval_every and self.done % self.config.eval_every == 0:
                evaluation = self.evaluate()
                row |= {"accuracy": evaluation.accuracy, "over_denoised": evaluation.over_denoised}
            if self.fabric.is_global_zero:
                metrics.write({"update": self.done, **row})
                if path is not None and (self.finished or self.done % self.config.checkpoint_every == 0):
                    self.save(path)
            if progress is not None:
                progress(self.done, self._rounds(), f"reward {row['reward']:.3f} loss {row['loss']:.4f}")
        folder = self._save_model() if path is not None and self.fabric.is_global_zero else None
        return TrainResult(self.done, row["reward"], evaluation, folder)

    @property
    def finished(self) -> bool:
        """Whether the run has had all its rounds."""
        if self.config.updates is None:
            return self.order.epoch > 0
        return self.done >= self.config.updates

    def _rounds(self) -> int:
        prompts = len(self.order.indices) or len(self.train_data)
        return self.config.updates or math.ceil(prompts / self._prompts_a_round())

    def round(self) -> dict[str, float]:
        """Do one round: rollouts, μ optimiser steps, reference sync.

        Returns:
            Figures of the round: loss, reward, kl, ratio, clipped, gradient norm, groups trained on.
        """
        rows, lengths = self._next_prompts()
        rollouts = None if self.config.objective == "sft" else self.roll_out(rows, lengths)
        batches = list(self._micro_batches(rows, rollouts))
        figures = {"reward": math.nan, "over_denoised_rollouts": math.nan, "micro_batches": len(batches)}
        if rollouts is not None:
            figures["reward"] = rollouts.rewards[:, -1].mean().item()
            figures["over_denoised_rollouts"] = rollouts.over_denoised.double().mean().item()
        for _ in range(self.config.num_iterations):
            figures |= self._update(batches)
        self.done += 1
        every = self.config.reference_sync_every
        if every and self.done % every == 0:
            self.reference.sync(self.config.reference_mix)
        return figures

    def _update(self, batches: list[MicroBatch]) -> dict[str, float]:
        self.module.train()
        self.optimizer.zero_grad()
        sums = {"loss": 0.0, "kl": 0.0, "ratio": 0.0, "clipped": 0.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed(_DROPOUT, self.fabric.global_rank))
            for index, batch in enumerate(batches):
                batch, loss, stats = self._backward(batch)
                batches[index] = batch
                sums["loss"] += loss * batch.share
                for name in ("kl", "ratio", "clipped") if stats is not None else ():
                    sums[name] += getattr(stats, name) / len(batches)
        self._average_gradients()
        norm = 0.0
        parameters = [p for p in self.policy.trainable().values() if p.grad is not None]
        if parameters:
            limit = self.config.max_grad_norm
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
            self.optimizer.step()
            self.scheduler.step()
        return {**sums, "grad_norm": norm, "learning_rate": self.scheduler.get_last_lr()[0]}

    def _backward(self, batch: MicroBatch) -> tuple[MicroBatch, float, Any]:
        # Processes may have different numbers of micro-batches: gradients are averaged once, at the end.
        several = self.fabric.world_size > 1
        logp_ref = None
        if self.reference is not None:
            with self.fabric.autocast():
                logp_ref = self.reference.log_probs(*batch.inputs)
        with self.fabric.no_backward_sync(self.module) if several else nullcontext():
            logp = self.module(*batch.inputs)
            loss, stats = loss_of(batch, logp, logp_ref, self.config)
            check_finite("loss", loss, self.done)
            self.fabric.backward(loss * batch.share)
        # The first pass over fresh rollouts is by the policy that drew them.
        batch = batch if batch.old is not None else batch.with_old(logp)
        return batch, loss.item(), stats

    def _average_gradients(self) -> None:
        if self.fabric.world_size == 1:
            return
        for parameter in self.policy.trainable().values():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.fabric.all_reduce(grad, reduce_op="mean")

    # --- Rollouts ---

    def roll_out(self, rows: Sequence[Row], block_lengths: Sequence[int]) -> Rollouts:
        """Return G scored rollouts of each prompt, prompts with one block length in one batch."""
        G = self.config.num_generations
        ids = self._row_ids(len(rows))
        seeds = row_seeds(self._seed(_ROLLOUT), int(ids.max()) + 1)
        self.module.eval()
        parts = []
        for length in sorted(set(block_lengths)):
            own = [i for i, found in enumerate(block_lengths) if found == length]
            with self.fabric.autocast():
                parts.append(
                    roll_out(
                        self.policy.model,
                        self.scoring,
                        [rows[i] for i in own],
                        replace(self.config.decoding, block_length=length),
                        seeds=[seeds[ids[i * G + g]] for i in own for g in range(G)],
                        copies=G,
                        max_rows=self.config.rollout_rows,
                    )
                )
        return join_rollouts(parts)

    def _micro_batches(self, rows: Sequence[Row], rollouts: Rollouts | None) -> Iterator[MicroBatch]:
        if self.config.objective == "mdpo":
            yield from mdpo_micro_batches(rollouts, self.config)
        elif self.config.objective == "diffu_grpo":
            ids = self._row_ids(len(rows))
            yield from diffu_grpo_micro_batches(rollouts, self.config, self._seed(_MASKS), ids)
        else:
            yield self._sft_batch(rows)

    def _sft_batch(self, rows: Sequence[Row]) -> MicroBatch:
        spec, copies = self.scoring.spec, self.config.num_generations
        prompt, mask = encode_prompts(self.scoring.tokenizer, spec, rows)
        answers, length = map(self._answer_ids, rows), self.config.decoding.gen_length
        filled = torch.tensor([ids + [spec.eos_ids[0]] * (length - len(ids)) for ids in answers])
        tensors = [
            part.repeat_interleave(copies, 0).to(self.fabric.device) for part in (prompt, mask, filled)
        ]
        return sft_micro_batch(*tensors, spec.mask_id, self._seed(_MASKS), 1.0, self._row_ids(len(rows)))

    def evaluate(self, decoding: Any = None) -> Evaluation:
        """Return the greedy accuracy on the evaluation data.

        Args:
            decoding: How to decode; by default as in training, at temperature 0.

        Raises:
            InputError: Without evaluation data.
        """
        if not self.eval_data:
            raise InputError("there is no evaluation data; give eval_data or set eval_every to 0")
        self.module.eval()
        decoding = replace(self.config.decoding, temperature=0.0) if decoding is None else decoding
        seeds = row_seeds(self.config.seed, len(self.eval_data))
        with self.fabric.autocast():
            model = self.policy.model
            return summarize(roll_out(model, self.scoring, self.eval_data, decoding, seeds=seeds))

    # --- Data ---

    def _seed(self, stream: int, rank: int = 0) -> int:
        return mix64(self.config.seed, self.done, stream, rank) >> 2

    def _row_ids(self, prompts: int) -> torch.Tensor:
        """Return the places of this process's rollouts among those of the round: draws depend on nothing else."""
        G = self.config.num_generations
        first = self.fabric.global_rank + self.fabric.world_size * torch.arange(prompts)
        return (first[:, None] * G + torch.arange(G)).flatten()

    def _prompts_a_round(self) -> int:
        return self.config.prompts_per_update * self.fabric.world_size

    def _next_prompts(self) -> tuple[list[Row], list[int]]:
        rows, lengths = self.order.next(self.train_data, self._prompts_a_round(), self._choose)
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        return rows[own], lengths[own]

    def _choose(self, epoch: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the prompts of an epoch, each with its block length."""
        config, count = self.config, len(self.train_data)
        seed = mix64(config.seed, epoch, _CHOICE) >> 2
        if self.given_selection is not None and epoch == 0:
            return self.given_selection.indices, self.given_selection.block_lengths
        if not config.select:
            choices = list(config.block_lengths) or [config.decoding.block_length]
            return range(count), draw_block_lengths(count, choices, seed)
        self.module.eval()
        with self.fabric.autocast():
            found = select_over_denoised(
                self.policy.model,
                self.scoring,
                self.train_data,
                config.decoding,
                block_lengths=config.block_lengths,
                temperature=config.selection_temperature,
                seed=seed,
                max_rows=config.rollout_rows,
            )
        if self.out is not None and self.fabric.is_global_zero:
            found.save(self.out / f"selection-{epoch}.json")
        return found.indices, found.block_lengths

    # --- Checkpoints ---

    def save(self, path: Path) -> None:
        """Write a checkpoint: trainable weights, reference, optimiser, scheduler and place in the data."""
        reference = (
            self.reference.state_dict() if self.reference and self.config.reference_sync_every else None
        )
        state = {
            "model": {name: p.detach() for name, p in self.policy.trainable().items()},
            "reference": reference,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.state(),
            "done": self.done,
        }
        save_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote."""
        state = load_checkpoint(path, self.fabric.device)
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.copy_(state["model"][name])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order, self.done = PromptOrder(**state["order"]), state["done"]

    def _save_model(self) -> str:
        with atomic_directory(self.out / "model", HOST_FOLDER) as folder:
            self.policy.model.save_pretrained(folder)
            self.scoring.tokenizer.save_pretrained(folder)
        return str(self.out / "model")
