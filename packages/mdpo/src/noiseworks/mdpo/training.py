"""MDPO training as a loop on Lightning Fabric: roll out, score every step, pick steps, update.

Data order, sampling and dropout are functions of the seed and the round, so a run that is killed and resumed
repeats the rounds of an uninterrupted one bit for bit on the CPU.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from noiseworks.core.artifacts import atomic_directory
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.masked_lm import HostSpec, check_prompt, detect_host
from noiseworks.kits.training import Run, load_parameters, make_fabric, rounds
from noiseworks.mdpo.micro_batches import (
    MicroBatch,
    diffu_grpo_micro_batches,
    loss_of,
    mdpo_micro_batches,
    sft_micro_batch,
)
from noiseworks.mdpo.options import MODEL_FOLDER, MDPOConfig
from noiseworks.mdpo.policy import Policy, Reference, add_lora
from noiseworks.mdpo.prompt_order import PromptOrder
from noiseworks.mdpo.prompts import Row, encode_prompts, prompt_ids
from noiseworks.mdpo.results import Evaluation, TrainResult
from noiseworks.mdpo.rewards import RewardFunction
from noiseworks.mdpo.rollouts import (
    Rollouts,
    Scoring,
    join_rollouts,
    roll_out,
    row_seeds,
    summarize,
)
from noiseworks.mdpo.selection import Selection, draw_block_lengths, select_over_denoised
from torch import nn

IDLE_ROUNDS = 5  # rounds in a row without anything to learn from, after which a run says so
# Streams of random numbers.
_ROLLOUT, _MASKS, _DROPOUT, _CHOICE = range(4)


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
    ) -> None:
        self.config, self.run = config, None
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
        self.fabric = make_fabric(config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = Policy(model, spec)
        parameters = list(self.policy.trainable().values())
        optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        warmup = config.warmup_steps + 1
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warmup))
        self.module = self.fabric.setup_module(self.policy)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        # After the set-up, so that a copy has the same device and precision.
        self.reference = Reference(self.policy) if config.beta and config.objective != "sft" else None
        self.order, self.done = PromptOrder(config.seed), 0
        self.last: dict[str, float] = {}
        self.evaluation: Evaluation | None = None
        self._idle = 0

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

    def fit(self, run: Run | None = None, *, progress: bool = True) -> TrainResult:
        """Do the rounds that are left, and write the trained model (or adapter) to `model` in the run's folder.

        Args:
            run: The open run, or None to keep nothing.
            progress: Whether to show a bar.

        Raises:
            NonFiniteError: When a loss is NaN or infinite; the last checkpoint stays.
            Stopped: On Ctrl-C, after a checkpoint of the round at hand.
        """
        self.run = run
        rounds(
            self,
            run=run,
            options=self.config,
            fabric=self.fabric,
            total=self.rounds_in_all,
            progress=progress,
        )
        folder = None
        if run is not None and self.fabric.is_global_zero:
            folder = str(run.folder / "model")
            with atomic_directory(folder, MODEL_FOLDER) as kept:
                self.policy.model.save_pretrained(kept)
                self.scoring.tokenizer.save_pretrained(kept)
        return TrainResult(self.done, self.last.get("reward"), self.evaluation, folder)

    def rounds_in_all(self) -> int:
        """Return the rounds of the run; those of one epoch are known when its prompts are."""
        prompts = len(self.order.indices) or len(self.train_data)
        return self.config.max_steps or math.ceil(prompts / self.config.batch_size)

    def round(self, step: int) -> dict[str, float]:
        """Do one round: rollouts, optimiser steps, reference sync, and an evaluation when it is due.

        Args:
            step: Rounds that are done.

        Returns:
            Figures of the round: loss, reward, kl, ratio, clipped, gradient norm, number of micro-batches.
        """
        self.done = step
        rows, lengths = self._next_prompts()
        rollouts = None if self.config.objective == "sft" else self.roll_out(rows, lengths)
        batches = list(self._micro_batches(rows, rollouts))
        figures: dict[str, float] = {"micro_batches": len(batches)}
        if rollouts is not None:
            figures["reward"] = rollouts.rewards[:, -1].mean().item()
            figures["over_denoised_rollouts"] = rollouts.over_denoised.double().mean().item()
        for _ in range(self.config.num_iterations):
            figures |= self._update(batches)
        self.done = step + 1
        self._warn_when_idle(len(batches), figures)
        every = self.config.reference_sync_every
        if every and self.done % every == 0:
            self.reference.sync(self.config.reference_mix)
        if self.config.eval_every and self.done % self.config.eval_every == 0:
            self.evaluation = self.evaluate()
            found = {"accuracy": self.evaluation.accuracy, "over_denoised": self.evaluation.over_denoised}
            figures |= found
        self.last = figures
        return figures

    def _warn_when_idle(self, batches: int, figures: Mapping[str, float]) -> None:
        self._idle = 0 if batches else self._idle + 1
        if self._idle == IDLE_ROUNDS:
            warnings.warn(
                f"rounds {self.done - IDLE_ROUNDS + 1} to {self.done} taught the model nothing: all rollouts of each "
                f"prompt have the same reward (mean {figures['reward']:.3g}); use easier prompts, a reward with "
                "more levels, a higher temperature or more rollouts a prompt",
                stacklevel=2,
            )

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

    def _next_prompts(self) -> tuple[list[Row], list[int]]:
        rows, lengths = self.order.next(self.train_data, self.config.batch_size, self._choose)
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        return rows[own], lengths[own]

    def _choose(self, epoch: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the prompts of an epoch, each with its block length."""
        config, count = self.config, len(self.train_data)
        seed = mix64(config.seed, epoch, _CHOICE) >> 2
        if self.given_selection is not None and epoch == 0:
            return self.given_selection.indices, self.given_selection.block_lengths
        if not config.select:
            choices = list(config.block_lengths or ()) or [config.decoding.block_length]
            return range(count), draw_block_lengths(count, choices, seed)
        self.module.eval()
        with self.fabric.autocast():
            found = select_over_denoised(
                self.policy.model,
                self.scoring,
                self.train_data,
                config.decoding,
                block_lengths=config.block_lengths or (),
                temperature=config.selection_temperature,
                seed=seed,
                max_rows=config.rollout_rows,
            )
        if self.run is not None and self.fabric.is_global_zero:
            found.save(self.run.folder / f"selection-{epoch}.json")
        return found.indices, found.block_lengths

    # --- Checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Return trainable weights, reference, optimiser, scheduler, place in the data and last figures."""
        synced = self.reference is not None and self.config.reference_sync_every
        return {
            "model": {name: p.detach() for name, p in self.policy.trainable().items()},
            "reference": self.reference.state_dict() if synced else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.state(),
            "done": self.done,
            "idle": self._idle,
            "last": self.last,
            "evaluation": None if self.evaluation is None else vars(self.evaluation),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        load_parameters(self.policy.model, state["model"], "the checkpoint")
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order, self.done = PromptOrder(**state["order"]), state["done"]
        self._idle, self.last = state["idle"], state["last"]
        self.evaluation = None if state["evaluation"] is None else Evaluation(**state["evaluation"])
