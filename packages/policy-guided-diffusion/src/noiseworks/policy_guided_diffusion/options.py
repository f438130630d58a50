"""The options of policy-guided diffusion; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training.options import Fit


@dataclass(frozen=True)
class Architecture(Options):
    """The network over windows of trajectories.

    Attributes:
        horizon: Steps of a window, H.
        features: Channels of the first level; every further level has twice as many.
        levels: Levels of the U-Net; the horizon is a multiple of 2^(levels - 1).
        norm_scope: What a group's statistics cover: step, one time step's channels, as released; or sequence, all of
            the window, as torch's GroupNorm does.
    """

    horizon: Annotated[int, at_least(2)] = 32
    features: Annotated[int, at_least(8)] = 1024
    levels: Annotated[int, at_least(1), at_most(6)] = 3
    norm_scope: Literal["step", "sequence"] = "step"

    def check(self) -> None:
        """Refuse a horizon that the levels cannot halve, and features that groups and sines cannot share.

        Raises:
            InputError: Naming the multiple.
        """
        multiple = 2 ** (self.levels - 1)
        if self.horizon % multiple:
            raise InputError(
                f"horizon must be a multiple of {multiple} with {self.levels} levels, got {self.horizon}"
            )
        if self.features % 8:
            raise InputError(f"features must be a multiple of 8, got {self.features}")


@dataclass(frozen=True)
class Windows(Options):
    """Which windows of the data the model learns.

    Attributes:
        stride: Every how many valid starts one is kept.
        held_out: Share of the episodes whose windows measure the loss and are not learned.
    """

    stride: Annotated[int, at_least(1)] = 8
    held_out: Annotated[float, at_least(0), at_most(0.5)] = 0.05


@dataclass(frozen=True)
class Sampling(Options):
    """How trajectories are denoised (Karras et al. 2022, alg. 2).

    Attributes:
        steps: Denoising steps N.
        order: 2 for Heun's method, 1 for Euler's.
        churn: Noise added along the way; 0 for none.
        churn_noise: Deviation of that noise.
        sigma_min: Last noise level above 0.
        sigma_max: First noise level.
        rho: Shape of the levels in between.
        euler_from: Where Euler's step begins: churned, as published; or unchurned, as in the paper's code.
        length: Steps of a trajectory; by default the model's own, others are extrapolated.
        together: Trajectories that are denoised together.
    """

    steps: Annotated[int, at_least(2)] = 128
    order: Annotated[int, at_least(1), at_most(2)] = 2
    churn: Annotated[float, at_least(0)] = 80.0
    churn_noise: Annotated[float, at_least(0)] = 1.003
    sigma_min: Annotated[float, above(0)] = 0.002
    sigma_max: Annotated[float, above(0)] = 80.0
    rho: Annotated[float, above(0)] = 7.0
    euler_from: Literal["churned", "unchurned"] = "churned"
    length: Annotated[int | None, at_least(2)] = None
    together: Annotated[int, at_least(1)] = 512


@dataclass(frozen=True)
class Guidance(Options):
    """How strongly, when and where actions are pushed towards the policy.

    Attributes:
        coefficient: Guidance coefficient; 0 for none.
        cosine: Height of the sine that is added to the falling weight.
        delay: Steps before guidance begins.
        normalize: Whether a trajectory's gradient is scaled to norm 1.
        at: Where the gradient is taken: denoised (one more network call a step) or noisy.
    """

    coefficient: Annotated[float, at_least(0)] = 1.0
    cosine: Annotated[float, at_least(0)] = 0.3
    delay: Annotated[int, at_least(0)] = 0
    normalize: bool = True
    at: Literal["denoised", "noisy"] = "denoised"


@dataclass(frozen=True)
class Replay(Options):
    """The synthetic data that an agent learns from.

    Attributes:
        model: Folder of a trajectory model; needed unless the agent's mode is real.
        pool: Trajectories of a pool.
        lifetime: Pools that are kept; each rebuild replaces the oldest.
        refresh_every: Updates between two rebuilds.
        batch_size: Transitions of a batch.
        real_share: Share of the batch that is real.
    """

    model: str | None = None
    pool: Annotated[int, at_least(1)] = 8192
    lifetime: Annotated[int, at_least(1)] = 1
    refresh_every: Annotated[int, at_least(1)] = 10_000
    batch_size: Annotated[int, at_least(1)] = 256
    real_share: Annotated[float, at_least(0), at_most(1)] = 1 / 16


@dataclass(frozen=True)
class Agent(Options):
    """An offline learner and the data that it learns from.

    Attributes:
        agent: td3bc or iql.
        mode: real, the recorded data; unguided, samples of the model; or guided, samples near the agent's own policy.
        updates: Updates.
        hidden: Width of the two hidden layers.
        alpha: Weight of the value against imitation, of td3bc.
        expectile: Of the value, of iql.
        beta: Inverse temperature of the advantages, of iql.
        agent_seed: Of networks, batches and synthetic trajectories.
        episodes: Episodes of the evaluation, where the data come from a maze.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every 100 updates.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "episodes"})

    agent: Literal["td3bc", "iql"] = "td3bc"
    mode: Literal["real", "unguided", "guided"] = "guided"
    updates: Annotated[int, at_least(1)] = 100_000
    hidden: Annotated[int, at_least(1)] = 256
    alpha: Annotated[float, at_least(0)] = 2.5
    expectile: Annotated[float, above(0), below(1)] = 0.7
    beta: Annotated[float, at_least(0)] = 3.0
    agent_seed: Annotated[int, at_least(0)] = 0
    episodes: Annotated[int, at_least(1)] = 100
    checkpoint_every: Annotated[float, at_least(0)] = 5.0


@dataclass(frozen=True)
class Draw(Options):
    """How many trajectories are drawn.

    Attributes:
        n: Trajectories.
        seed: Of the samples.
    """

    n: Annotated[int, at_least(1)] = 1024
    seed: Annotated[int, at_least(0), below(2**63)] = 0


@dataclass(frozen=True)
class Fitting(Fit):
    """Length, seed, hardware and bookkeeping of a training run.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Windows of a batch, over all processes.
    """

    max_steps: Annotated[int, at_least(1)] = 100_000
    batch_size: Annotated[int, at_least(1)] = 32
