"""The loop of methods that tune a pipeline on its own rollouts or on data, on Lightning's `Fabric`.

A method subclasses `Tuner` and writes `round`: which rollouts are drawn, and the loss of a row at a step (`optimise`),
or which rows of its data are taken, and their losses (`descend`). The tuner does the rest: adapters, rollouts, rewards,
optimiser steps, several processes, checkpoints. What is trained is LoRA unless a method overrides `adapt`.

A round looks the same from every process: rollouts are shared out, scored, and gathered; each minibatch is shared out
again, its losses are means over all of its rows, and gradients are added up. So the number of processes changes no
number but in the last bits, and a method knows nothing of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import ArtifactError
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.adapters import add_lora, reference, save_lora
from noiseworks.kits.image_tuning.options import OfflineTuning, Rollout, Tuning
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.image_tuning.rewards import Reward, score
from noiseworks.kits.image_tuning.trajectories import Trajectories
from noiseworks.kits.training import Run, load_parameters, make_fabric, rounds
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Streams of random numbers.
_PROMPTS, _STARTS, _STEPS, _ORDER, _OWN = range(5)
MODEL = "lora"  # folder of LoRA adapters in a run's folder
UNGUIDED = Rollout(
    num_inference_steps=2, guidance_scale=1.0
)  # for methods that draw nothing while they train


class Losses(NamedTuple):
    """What a method computes for some rows at one step each.

    Attributes:
        values: One loss a row [n]; their mean over all rows and steps is minimised.
        figures: Name -> one value a row [n], averaged for the metrics.
    """

    values: Tensor
    figures: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Tuned:
    """What a tuning run came to.

    Attributes:
        rounds: Rounds done.
        reward: Mean reward of the last round's rollouts, None where nothing is scored.
        queries: Images that were scored.
        adapter: The adapter's folder, None when nothing was kept.
    """

    rounds: int
    reward: float | None
    queries: int
    adapter: str | None


@dataclass
class _Tally:
    """Sums of figures over rows."""

    rows: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, figures: Mapping[str, Tensor], rows: int) -> None:
        self.rows += rows
        for name, values in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.detach().double().sum())


class Tuner(ABC):
    """Base of a method that tunes a pipeline's denoiser by adapters, on its own rollouts or on data.

    Args:
        pipe: A text-to-image pipeline; its denoiser gets adapters and keeps them.
        prompts: What is trained on.
        reward: What finished images are worth; None for methods that ask for none.
        options: The run: `Tuning` for rollouts; for data `LoraTuning`, or `OfflineTuning` where `adapt` is overridden.
        rollout: How the policy draws.
        call: Further arguments of the pipeline's call.

    Attributes:
        kept_as: Name of the folder of what is trained, in a run's folder.
        policy: The denoiser as a policy.
        trainable: What is trained, by name.
        fabric: Lightning's Fabric.
        done: Rounds done.
        queries: Images scored so far.

    Raises:
        InputError: When the prompts are empty or the pipeline does not fit.
    """

    kept_as: ClassVar[str] = MODEL

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        reward: Reward | None,
        options: OfflineTuning,
        rollout: Rollout = UNGUIDED,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.reward, self.run = options, reward, None
        self.fabric = make_fabric(options)
        self.pipe = pipe.to(self.fabric.device)
        self.policy = Policy(self.pipe, prompts, rollout, call)
        self.denoiser = self.policy.denoiser
        self.trainable = self.adapt()
        if options.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.denoiser.eval()  # dropout would make the policy that is trained another than the one that drew
        settings = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "eps": 1e-8}
        optimizer = torch.optim.AdamW(self.trainable.values(), **settings)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        self.done, self.queries = 0, 0
        self.last: dict[str, float] = {}
        self.shown: Tensor | None = None

    # --- what is trained ---

    def adapt(self) -> dict[str, nn.Parameter]:
        """Put what is trained on the denoiser, freeze all else, and return it by name; without effect at first."""
        return add_lora(self.denoiser, self.options.lora_rank, self.options.seed)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make the denoiser the pretrained one within a block."""
        with reference(self.denoiser):
            yield

    def save(self, folder: Path) -> None:
        """Write what is trained as the host reads it."""
        save_lora(self.pipe, folder)

    # --- what a method writes ---

    @abstractmethod
    def round(self, step: int) -> Mapping[str, float]:
        """Do one round and return its figures, `loss` and `reward` among them.

        Args:
            step: Rounds done.
        """

    def method_state(self) -> dict[str, Any]:
        """Return what the method remembers between rounds, as tensors and plain values."""
        return {}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `method_state` returned.

        Raises:
            ArtifactError: When there is anything, which a method that remembers nothing does not know.
        """
        if state:
            raise ArtifactError(f"the checkpoint is of another method: it remembers {next(iter(state))!r}")

    # --- what it writes it with ---

    def draw_prompts(self, count: int) -> Tensor:
        """Return this round's prompt numbers, of an order in which all come once before any comes again [count].

        Args:
            count: Prompts a round, the same in all rounds.
        """
        return self.draw_rows(len(self.policy.prompts), count)

    def draw_rows(self, number: int, count: int) -> Tensor:
        """Return this round's rows of a table, in an order in which all come once before any comes again [count].

        Args:
            number: Rows of the table.
            count: Rows a round, the same in all rounds.
        """
        first = self.done * count
        found = []
        for epoch in range(first // number, (first + count - 1) // number + 1):
            generator = torch.Generator().manual_seed(mix64(self.options.seed, epoch, _PROMPTS) >> 2)
            found.append(torch.randperm(number, generator=generator))
        return torch.cat(found)[first % number :][:count]

    def seed(self, stream: int, *parts: int) -> int:
        """Return a seed of this round for one use of random numbers."""
        return mix64(self.options.seed, self.done, stream, *parts) >> 2

    def roll_out(self, ids: Tensor, starts: Sequence[int] | None = None) -> Trajectories:
        """Draw and score rollouts; what comes back holds all of them, in every process.

        Args:
            ids: Prompt numbers, int64 [N], a multiple of the number of processes.
            starts: Numbers of the first latents: rollouts of one number start from the same noise. By default each
                has its own.
        """
        numbers = list(range(len(ids))) if starts is None else list(starts)
        first = [self.seed(_STARTS, number) for number in numbers]
        noise = [self.seed(_STEPS, row) for row in range(len(ids))]
        own = self.own_rows(torch.arange(len(ids)))
        with self.fabric.autocast():
            drawn = self.policy.roll_out(ids[own], [first[i] for i in own], [noise[i] for i in own])
        return self.gathered(self.scored(drawn))

    def branch_out(self, ids: Tensor, branches: int, place: int) -> Trajectories:
        """Draw and score trees of rollouts that part at a step, see `Policy.branch_out`.

        Args:
            ids: Prompt numbers, one a group, int64 [G], a multiple of the number of processes.
            branches: Rollouts of a group.
            place: The first step that they do not share.
        """
        own = self.own_rows(torch.arange(len(ids)))
        starts = [self.seed(_STARTS, group) for group in own.tolist()]
        seeds = [self.seed(_STEPS, group, branch) for group in own.tolist() for branch in range(branches)]
        with self.fabric.autocast():
            drawn = self.policy.branch_out(ids[own], starts, seeds, branches, place)
        return self.gathered(self.scored(drawn), branches)

    def scored(self, drawn: Trajectories) -> Trajectories:
        """Return this process's rollouts with their rewards."""
        if self.reward is None:
            return drawn
        images = self.policy.decode(drawn.latents[:, -1])
        self.shown = images[:16]
        return drawn.with_rewards(score(self.reward, images, drawn.texts))

    def gathered(self, own: Trajectories, block: int = 1) -> Trajectories:
        """Return the rollouts of all processes, in the order of `own_rows`.

        Args:
            own: This process's rollouts.
            block: How many of them in a row belong to one row of `own_rows`.
        """
        world = self.fabric.world_size
        if own.rewards is not None:
            self.queries += len(own) * world
        if world == 1:
            return own
        parts = {name: value for name, value in vars(own).items() if isinstance(value, Tensor)}
        for name, value in parts.items():
            found = self.fabric.all_gather(value.to(self.fabric.device)).cpu()
            found = found.unflatten(1, (-1, block)).transpose(0, 1)
            parts[name] = found.reshape(-1, *value.shape[1:])
        return Trajectories(own.prompts, **parts)

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return this process's share of some rows: every one in turn."""
        return rows[self.fabric.global_rank :: self.fabric.world_size]

    def log_prob(self, trajectories: Trajectories, rows: Tensor, places: Tensor) -> Tensor:
        """Return the log-probabilities of stored steps under the present weights [n], with gradients."""
        with self.fabric.autocast():
            return self.policy.log_prob(trajectories, rows, places)

    def reference_log_probs(self, trajectories: Trajectories) -> Tensor:
        """Return the log-probabilities of all stochastic steps under the pretrained weights [N, T], once a buffer."""
        own = self.own_rows(torch.arange(len(trajectories)))
        with self.fabric.autocast(), self.reference():
            found = self.policy.log_probs(trajectories, own)
        if self.fabric.world_size == 1:
            return found
        table = torch.zeros(len(trajectories), found.shape[1], device=self.fabric.device)
        table[own] = found.to(table)
        return self.fabric.all_reduce(table, reduce_op="sum").cpu()

    def optimise(
        self, losses: Callable[[Tensor, Tensor], Losses], rows: Tensor, places: Tensor | None = None
    ) -> dict[str, float]:
        """Go through rows and their denoising steps in random order, with optimiser steps on the way.

        Each row has an order of steps of its own. An optimiser step has the gradient of the mean loss over its
        `minibatch * accumulate` rows and all of their steps; the last one of an epoch over the rows that are left. No
        two steps' graphs are in memory at once.

        Args:
            losses: (rows [n], places [n]) -> losses of these rows at these steps. A row is a number of `rows`.
            rows: What is trained on (rollouts, pairs), int64 [N].
            places: Which steps are trained, by default all that draw.

        Returns:
            Mean loss and figures, the mean norm of the gradients and the number of optimiser steps.

        Raises:
            NonFiniteError: When a loss is NaN or infinite.
        """
        options, tally, norms = self.options, _Tally(), []
        places = torch.arange(self.policy.chain.stochastic) if places is None else places
        count = max(1, int(options.timestep_fraction * len(places)))
        for epoch in range(options.inner_epochs):
            generator = torch.Generator().manual_seed(self.seed(_ORDER, epoch))
            order = torch.randperm(len(rows), generator=generator)
            times = [places[torch.randperm(len(places), generator=generator)[:count]] for _ in order]
            for window in order.split(options.minibatch * options.accumulate):
                self.optimizer.zero_grad()
                for minibatch in window.split(options.minibatch):
                    own = self.own_rows(minibatch)
                    for turn in range(count if len(own) else 0):
                        found = losses(rows[own], torch.stack([times[i][turn] for i in own]))
                        check_finite("the loss", found.values, self.done)
                        self.fabric.backward(found.values.sum() / (len(window) * count))
                        tally.add({"loss": found.values, **found.figures}, len(own))
                norms.append(self._step())
        return self._means(tally) | {
            "grad_norm": sum(norms) / max(1, len(norms)),
            "optimizer_steps": float(len(norms)),
        }

    def descend(self, losses: Callable[[Tensor], Losses], count: int) -> dict[str, float]:
        """Do one optimiser step on the mean loss of a batch, `minibatch` rows at once.

        Args:
            losses: (rows [n]) -> losses of these rows of the batch, each a number below `count`.
            count: Rows of the batch.

        Returns:
            Mean loss and figures, and the gradient's norm.

        Raises:
            NonFiniteError: When a loss is NaN or infinite.
        """
        tally = _Tally()
        self.optimizer.zero_grad()
        for minibatch in torch.arange(count).split(self.options.minibatch):
            own = self.own_rows(minibatch)
            if len(own):
                with self.fabric.autocast():
                    found = losses(own)
                check_finite("the loss", found.values, self.done)
                self.fabric.backward(found.values.sum() / count)
                tally.add({"loss": found.values, **found.figures}, len(own))
        return self._means(tally) | {"grad_norm": self._step()}

    def _step(self) -> float:
        several = self.fabric.world_size > 1
        for parameter in self.trainable.values() if several else ():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.fabric.all_reduce(grad, reduce_op="sum")
        norm = self.fabric.clip_gradients(
            self.denoiser, self.optimizer, max_norm=self.options.max_grad_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        return float(norm)

    def _means(self, tally: _Tally) -> dict[str, float]:
        names = sorted(tally.sums)
        values = torch.tensor([tally.sums[name] for name in names] + [tally.rows], dtype=torch.float64)
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="sum").cpu()
        *sums, rows = values.tolist()
        return {name: total / max(1.0, rows) for name, total in zip(names, sums, strict=True)}

    def reward_figures(self, trajectories: Trajectories) -> dict[str, float]:
        """Return mean and spread of the rewards, images scored and the denoiser's calls so far."""
        rewards = trajectories.rewards[:, 0]
        return {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(correction=0)),
            "queries": float(self.queries),
            "calls": float(self.policy.calls * self.fabric.world_size),
        }

    # --- the run ---

    def fit(self, run: Run | None = None, *, progress: bool = True) -> Tuned:
        """Do the rounds that are left, and write the adapter to `kept_as` (`lora`) in the run's folder.

        Args:
            run: The open run, or None to keep nothing.
            progress: Whether to show a bar.

        Raises:
            NonFiniteError: When a loss, a reward or latents are NaN or infinite; the last checkpoint stays.
            Stopped: On Ctrl-C, after a checkpoint of the round at hand.
        """
        self.run = run
        rounds(_Counted(self), run=run, options=self.options, fabric=self.fabric, progress=progress)
        adapter = None
        if run is not None:
            adapter = str(run.folder / self.kept_as)
            if self.fabric.is_global_zero:
                self.save(Path(adapter))
        return Tuned(self.done, self.last.get("reward"), self.queries, adapter)

    def state_dict(self) -> dict[str, Any]:
        """Return adapters, optimiser, counters and what the method remembers."""
        return {
            "adapters": {name: p.detach() for name, p in self.trainable.items()},
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "queries": self.queries,
            "calls": self.policy.calls,
            "last": self.last,
            "method": self.method_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. The reference is the pretrained model, before and after."""
        load_parameters(self.denoiser, state["adapters"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.queries, self.last = state["done"], state["queries"], state["last"]
        self.policy.calls = state["calls"]
        self.load_method_state(state["method"])


class _Counted:
    """A tuner as `rounds` runs it: counts, and writes pictures."""

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self.state_dict, self.load_state_dict = tuner.state_dict, tuner.load_state_dict

    def round(self, step: int) -> Mapping[str, float]:
        tuner = self.tuner
        tuner.done = step
        figures = dict(tuner.round(step))
        tuner.done, tuner.last = step + 1, figures
        every = tuner.options.pictures_every if isinstance(tuner.options, Tuning) else 0
        if every and tuner.done % every == 0 and tuner.run is not None and tuner.fabric.is_global_zero:
            self._picture()
        return figures

    def _picture(self) -> None:
        from noiseworks.kits.pictures import grid, to_pixels, write_picture

        if self.tuner.shown is None:
            return
        lines = to_pixels(self.tuner.shown)
        rows = {" " * i: lines[i : i + 8] for i in range(0, len(lines), 8)}
        folder = self.tuner.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_picture(grid(rows, scale=max(1, 64 // lines.shape[1])), folder / f"{self.tuner.done:05d}.png")
