"""The options of DiWA; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.training.options import Fit


@dataclass(frozen=True)
class Models(Options):
    """What a policy is tuned in.

    Attributes:
        model: Folder of the world model, from `fit`.
        classifier: Folder of the classifier of success, from `reward`.
    """

    model: str
    classifier: str


@dataclass(frozen=True)
class ModelSizes(Options):
    """The world model.

    Attributes:
        deter: Width of the deterministic state h.
        groups: Categorical variables of the stochastic state z.
        classes: Classes of each.
        width: Width of the hidden layers.
    """

    deter: Annotated[int, at_least(1)] = 1024
    groups: Annotated[int, at_least(1)] = 32
    classes: Annotated[int, at_least(2)] = 32
    width: Annotated[int, at_least(1)] = 1000

    @property
    def features(self) -> int:
        """Width of a feature [h; z]."""
        return self.deter + self.groups * self.classes


@dataclass(frozen=True)
class ModelFit(Fit):
    """Length, rate and bookkeeping of the world model's training.

    Attributes:
        max_steps: Optimiser steps.
        batch_size: Windows of a batch, over all processes.
        length: Steps of a window, L.
        learning_rate: Of AdamW.
        obs_std: Deviation of the decoder, in deviations of the data. With the paper's 1, which is for the thousands of
            pixels of a picture, a vector of a few numbers is not worth the divergence that telling it costs.
    """

    max_steps: Annotated[int, at_least(1)] = 100_000
    batch_size: Annotated[int, at_least(1)] = 50
    length: Annotated[int, at_least(2)] = 50
    learning_rate: Annotated[float, above(0)] = 3e-4
    obs_std: Annotated[float, above(0)] = 0.1


@dataclass(frozen=True)
class PolicySizes(Options):
    """The diffusion policy on features.

    Attributes:
        chunk: Actions of a decision, C.
        denoising_steps: Steps of the chain, K.
        policy_width: Width of the residual layers.
        policy_layers: How many.
        time_dim: Width of the time embedding, even.
    """

    chunk: Annotated[int, at_least(1)] = 4
    denoising_steps: Annotated[int, at_least(1)] = 20
    policy_width: Annotated[int, at_least(1)] = 512
    policy_layers: Annotated[int, at_least(1)] = 3
    time_dim: Annotated[int, at_least(4)] = 16


@dataclass(frozen=True)
class PolicyFit(Fit):
    """Length, rate and bookkeeping of imitation.

    Attributes:
        max_steps: Optimiser steps.
        batch_size: Decisions of a batch, over all processes.
        learning_rate: Of AdamW, which falls along a cosine to a tenth.
    """

    max_steps: Annotated[int, at_least(1)] = 20_000
    batch_size: Annotated[int, at_least(1)] = 256
    learning_rate: Annotated[float, above(0)] = 1e-4


@dataclass(frozen=True)
class RewardFit(Options):
    """Training of the success classifier.

    Attributes:
        epochs: Passes over the balanced latents.
        reward_batch: Latents of a batch.
        reward_rate: Of Adam.
        temperature: Of the contrastive loss.
        reward_width: Width of the hidden layers; the code has a quarter of it.
        imagined: Whether latents that the demonstrations' actions lead to in the model are learned as well.
        held_out: Share of the episodes that measure precision and recall.
        reward_seed: Of weights, balance and order.
    """

    epochs: Annotated[int, at_least(1)] = 100
    reward_batch: Annotated[int, at_least(2)] = 32
    reward_rate: Annotated[float, above(0)] = 1e-6
    temperature: Annotated[float, above(0)] = 0.5
    reward_width: Annotated[int, at_least(4)] = 1024
    imagined: bool = True
    held_out: Annotated[float, at_least(0), at_most(0.5)] = 0.2
    reward_seed: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class Dreaming(Options):
    """Imagined episodes.

    Attributes:
        envs: Episodes that are dreamt together.
        decisions: Decisions of a rollout.
        limit: Steps after which an episode is cut, a multiple of the chunk.
    """

    envs: Annotated[int, at_least(1)] = 50
    decisions: Annotated[int, at_least(1)] = 36
    limit: Annotated[int, at_least(1)] = 72


@dataclass(frozen=True)
class Tuning(Fit):
    """PPO over the last denoising steps.

    Attributes:
        max_steps: Iterations, each a rollout and its epochs.
        batch_size: Decisions of a minibatch; more than a rollout has are one full batch.
        tuned_steps: Denoising steps that are tuned, K'; the noisier ones stay as they are.
        epochs: Passes over a rollout.
        actor_rate: Of Adam.
        critic_rate: Of Adam.
        gamma: Discount of a decision.
        lam: Of the advantage estimates.
        denoising_gamma: Discount of denoising steps.
        bc_coef: Weight of the term that keeps the policy near the imitating one.
        critic_first: Iterations in which only the critic learns.
        kl_limit: Divergence after which an iteration's epochs end.
        minibatch: pairs of decision and denoising step, or whole chains.
    """

    max_steps: Annotated[int, at_least(1)] = 800
    batch_size: Annotated[int, at_least(1)] = 7500
    tuned_steps: Annotated[int, at_least(1)] = 10
    epochs: Annotated[int, at_least(1)] = 10
    actor_rate: Annotated[float, above(0)] = 1e-5
    critic_rate: Annotated[float, above(0)] = 1e-3
    gamma: Annotated[float, at_least(0), at_most(1)] = 0.999
    lam: Annotated[float, at_least(0), at_most(1)] = 0.95
    denoising_gamma: Annotated[float, at_least(0), at_most(1)] = 0.99
    bc_coef: Annotated[float, at_least(0)] = 0.05
    critic_first: Annotated[int, at_least(0)] = 2
    kl_limit: Annotated[float, above(0)] = 1.0
    minibatch: Literal["pairs", "chains"] = "pairs"


def check_fits(dreaming: Dreaming, tuning: Tuning, sizes: PolicySizes) -> None:
    """Refuse a limit of steps that chunks do not divide, and more tuned steps than a policy has.

    Raises:
        InputError: Naming both.
    """
    if dreaming.limit % sizes.chunk:
        raise InputError(
            f"limit must be a multiple of the policy's chunk ({sizes.chunk}), got {dreaming.limit}"
        )
    if tuning.tuned_steps > sizes.denoising_steps:
        raise InputError(
            f"tuned_steps must be at most the policy's denoising_steps ({sizes.denoising_steps}), "
            f"got {tuning.tuned_steps}"
        )
