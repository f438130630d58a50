"""The options of EXPO; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Wholes, above, at_least, at_most, below
from noiseworks.kits.rl.options import Recorded, World
from noiseworks.kits.training.options import Fit


@dataclass(frozen=True)
class BaseSizes(Options):
    """The expressive policy that proposes actions.

    Attributes:
        kind: ddpm, denoising diffusion; or flow, flow matching with Euler steps.
        denoising_steps: Steps of a sample, T.
        width: Width of the residual blocks.
        blocks: Residual blocks.
        time_dim: Width of the learned Fourier features of time.
        dropout: In the residual blocks.
        chunk: Actions of one decision, C.
    """

    kind: Literal["ddpm", "flow"] = "ddpm"
    denoising_steps: Annotated[int, at_least(1)] = 10
    width: Annotated[int, at_least(1)] = 256
    blocks: Annotated[int, at_least(1)] = 3
    time_dim: Annotated[int, at_least(2)] = 128
    dropout: Annotated[float, at_least(0), below(1)] = 0.0
    chunk: Annotated[int, at_least(1)] = 1


@dataclass(frozen=True)
class Proposals(Options):
    """Among which candidates the on-the-fly policy chooses, and how.

    Attributes:
        n_base: Base actions that are sampled, N.
        n_edit: How many of them are edited too; all by default.
        keep: Candidates: both; base, selection without edits; or edited, edits without the actions they came from.
        select: argmax of the value, or soft, a draw by its softmax.
        soft_scale: Inverse temperature of that draw.
        edit_scale: Largest edit of a dimension, beta, in units of the action box scaled to [-1, 1].
        masked: Dimensions of a single action that are never edited, such as a gripper's.
    """

    n_base: Annotated[int, at_least(1)] = 8
    n_edit: Annotated[int | None, at_least(0)] = None
    keep: Literal["both", "base", "edited"] = "both"
    select: Literal["argmax", "soft"] = "argmax"
    soft_scale: Annotated[float, above(0)] = 1.0
    edit_scale: Annotated[float, above(0), at_most(2)] = 0.15
    masked: Annotated[Wholes | None, at_least(0)] = None

    def check(self) -> None:
        """Refuse more edits than base actions, and edits alone where nothing is edited.

        Raises:
            InputError: Saying so.
        """
        if self.edits > self.n_base:
            raise InputError(f"n_edit must be at most n_base, got {self.n_edit} and {self.n_base}")
        if self.keep == "edited" and not self.edits:
            raise InputError("keep edited needs edits: n_edit is 0")

    @property
    def edits(self) -> int:
        """How many base actions are edited."""
        return self.n_base if self.n_edit is None else self.n_edit


@dataclass(frozen=True)
class Arena(World):
    """Where the policy acts, and what has been recorded there.

    Attributes:
        data: Recorded experience that batches mix with the agent's own, under the names of `fit`; none by default.
        record_steps: Steps that are recorded, where the data are a maze's.
    """

    data: str | None = None
    record_steps: Annotated[int, at_least(1)] = 50_000

    @property
    def recorded(self) -> Recorded | None:
        """What has been recorded."""
        if self.data is None:
            return None
        return Recorded(self.data, self.record_steps, record_limit=self.episode_steps, reward=self.reward)

    def check(self) -> None:
        """Refuse wrong names of the environment and of the data.

        Raises:
            InputError: Saying what a name may be.
        """
        super().check()
        _ = self.recorded


@dataclass(frozen=True)
class Learning(Options):
    """Reinforcement learning of critics and edits.

    Attributes:
        envs: Environments that act together.
        warmup: Decisions before learning begins.
        warmup_policy: uniform actions; base, the base's own; auto is base, as it comes trained.
        utd: Critic steps a decision.
        critics: Members of the ensemble.
        subset: Members of a random subset, whose least value counts.
        critic_hidden: Width of the hidden layers of critics and edit policy.
        layers: Their hidden layers.
        gamma: Discount of a decision.
        tau: Share by which target critics follow.
        base_tau: Share by which the base's average follows; the average acts.
        learning_rate: Of Adam.
        offline_share: Share of recorded transitions in a batch, where data are given.
        edit_base: What the edit policy learns to edit: buffer, the actions that were played; or policy, fresh samples.
        target_entropy: corrected, -d/2 + d ln(beta); or reference, -d/2, which edits below a scale of 0.303 cannot
            reach, so that the temperature grows without bound.
        backup: otf, targets by the on-the-fly policy; or base, by a base action.
        train_base: Whether the base goes on imitating what the buffers hold.
        capacity: Transitions of the agent's own that are kept.
    """

    envs: Annotated[int, at_least(1)] = 1
    warmup: Annotated[int, at_least(0)] = 5_000
    warmup_policy: Literal["auto", "uniform", "base"] = "auto"
    utd: Annotated[int, at_least(1)] = 20
    critics: Annotated[int, at_least(1)] = 10
    subset: Annotated[int, at_least(1)] = 2
    critic_hidden: Annotated[int, at_least(1)] = 256
    layers: Annotated[int, at_least(1)] = 3
    gamma: Annotated[float, at_least(0), at_most(1)] = 0.99
    tau: Annotated[float, above(0), at_most(1)] = 0.005
    base_tau: Annotated[float, above(0), at_most(1)] = 0.001
    learning_rate: Annotated[float, above(0)] = 3e-4
    offline_share: Annotated[float, at_least(0), at_most(1)] = 0.5
    edit_base: Literal["buffer", "policy"] = "buffer"
    target_entropy: Literal["corrected", "reference"] = "corrected"
    backup: Literal["otf", "base"] = "otf"
    train_base: bool = True
    capacity: Annotated[int, at_least(1)] = 1_000_000

    def check(self) -> None:
        """Refuse a subset that is larger than the ensemble.

        Raises:
            InputError: Saying so.
        """
        if self.subset > self.critics:
            raise InputError(f"subset must be at most critics ({self.critics}), got {self.subset}")


@dataclass(frozen=True)
class Pretraining(Fit):
    """Length and bookkeeping of the base's imitation of recorded data.

    Attributes:
        max_steps: Optimiser steps.
        batch_size: Decisions of a batch, over all processes.
        learning_rate: Of AdamW, which falls along a cosine to 0.
    """

    max_steps: Annotated[int, at_least(1)] = 100_000
    batch_size: Annotated[int, at_least(1)] = 256
    learning_rate: Annotated[float, above(0)] = 3e-4


@dataclass(frozen=True)
class Training(Fit):
    """Length and bookkeeping of reinforcement learning.

    Attributes:
        max_steps: Rounds, each of an episode in every environment and of the updates that its decisions are worth.
        batch_size: Transitions of a critic step.
    """

    max_steps: Annotated[int, at_least(1)] = 1_000
    batch_size: Annotated[int, at_least(1)] = 256
