"""The options of DSRL; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.rl.options import Episodes, Recorded


@dataclass(frozen=True)
class Decoding(Options):
    """How noise becomes a chunk of actions.

    Attributes:
        steps: Deterministic (DDIM) denoising steps.
        magnitude: Largest noise b that the actor may choose, in standard deviations; about 1.5 is usual.
        tie: none, every step of the chunk has noise of its own; repeat, all steps share one, which makes the actor's
            task smaller and may break policies that never saw such noise.
    """

    steps: Annotated[int, at_least(1)] = 8
    magnitude: Annotated[float, above(0)] = 1.5
    tie: Literal["none", "repeat"] = "none"


@dataclass(frozen=True)
class Learning(Options):
    """Reinforcement learning in noise space.

    Attributes:
        variant: na learns a critic of real actions and distils it into one of noise; sac is SAC on noise.
        decisions: Chunks decided in all, over all environments.
        envs: Environments that act together.
        warmup: Chunks of the policy's own behaviour (normal noise) before learning begins.
        utd: Gradient steps a step of all environments.
        noise_critic_steps: Distillation steps of na after those.
        batch_size: Chunks of a batch.
        hidden: Width of the hidden layers.
        layers: Hidden layers.
        gamma: Discount of a chunk.
        tau: Share by which target critics follow.
        learning_rate: Of Adam.
        target_entropy: That the temperature keeps the noise's entropy near; 0 in the paper's code.
        critics: min or mean of the two critics.
        layer_norm: Whether a LayerNorm follows each hidden linear layer, as in the paper's networks.
        round_decisions: Chunks of a round, after which a checkpoint may be written; each begins with fresh episodes.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every round.
        data: Recorded experience that na's critic of actions learns from too: a folder of transitions,
            maze:<layout>-<behaviour> or minari:<id>; none by default.
        record_steps: Steps that are recorded, where the data are a maze's.
        seed: Of networks, noise and environments.
    """

    FREE: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})

    variant: Literal["na", "sac"] = "na"
    decisions: Annotated[int, at_least(1)] = 10_000
    envs: Annotated[int, at_least(1)] = 4
    warmup: Annotated[int, at_least(0)] = 2_000
    utd: Annotated[int, at_least(1)] = 20
    noise_critic_steps: Annotated[int, at_least(0)] = 10
    batch_size: Annotated[int, at_least(2)] = 256
    hidden: Annotated[int, at_least(1)] = 128
    layers: Annotated[int, at_least(1)] = 3
    gamma: Annotated[float, at_least(0), at_most(1)] = 0.99
    tau: Annotated[float, above(0), at_most(1)] = 0.005
    learning_rate: Annotated[float, above(0)] = 3e-4
    target_entropy: float = 0.0
    critics: Literal["min", "mean"] = "min"
    layer_norm: bool = False
    round_decisions: Annotated[int, at_least(1)] = 2_000
    checkpoint_every: Annotated[float, at_least(0)] = 5.0
    data: str | None = None
    record_steps: Annotated[int, at_least(1)] = 20_000
    seed: Annotated[int, at_least(0), below(2**31)] = 0

    def check(self) -> None:
        """Refuse recorded data for the variant that learns on noise, which no data hold.

        Raises:
            InputError: Saying so.
        """
        if self.data is not None and self.variant == "sac":
            raise InputError(
                "recorded data hold actions and no noise: variant sac cannot learn from them; take na"
            )
        if self.data is not None:
            Recorded(self.data, self.record_steps)


@dataclass(frozen=True)
class Evaluation(Episodes):
    """How a policy is evaluated.

    Attributes:
        deterministic: Whether the actor's mode is taken instead of a draw.
        candidates: Chunks of the frozen policy among which the critic of actions takes the best, as a baseline beside
            the actor of na; 1 for no such baseline.
    """

    deterministic: bool = False
    candidates: Annotated[int, at_least(1)] = 1
