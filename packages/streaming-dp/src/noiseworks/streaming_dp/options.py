"""The options of streaming; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least
from noiseworks.kits.training.options import Fit
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS, check_weights

KIND = "streaming-dp/policy"  # of directories that hold a streaming policy
BufferInit = Literal["zero", "constant", "denoise"]
Solver = Literal["ddpm", "ddim", "karras"]
NoiseSchedule = Literal["vp", "edm"]


@dataclass(frozen=True)
class Stream(Options):
    """How the buffer begins and is denoised.

    Attributes:
        n_action_steps: Actions executed a cycle; the policy's own number by default.
        num_levels: Inference levels; all of the training's by default.
        solver: ddpm, ddim or karras (Karras' grid of sigmas); by default ddpm, and karras for a policy trained by edm.
        churn: Noise that solver karras adds, S_churn, for a policy trained by edm; 0 is deterministic.
        buffer_init: Actions at the start of an episode: zero, constant or denoise (a full run).
        constant: Action for buffer_init constant, in environment units; repeat the option for each number.
        renoise_prefix: Whether executed actions in the buffer are noised to their label.
    """

    n_action_steps: Annotated[int | None, at_least(1)] = None
    num_levels: Annotated[int | None, at_least(1)] = None
    solver: Solver | None = None
    churn: Annotated[float, at_least(0)] = 0.0
    buffer_init: BufferInit = "zero"
    constant: tuple[float, ...] | None = None
    renoise_prefix: bool = True

    def check(self) -> None:
        """Refuse a constant without its start, and the other way round.

        Raises:
            InputError: Naming both.
        """
        if (self.buffer_init == "constant") != (self.constant is not None):
            raise InputError(
                "buffer_init 'constant' and a constant action go together, "
                f"got {self.buffer_init!r} and {self.constant!r}"
            )


@dataclass(frozen=True)
class TrainConfig(Fit):
    """A fine-tuning, or a training from the start.

    Attributes:
        max_steps: Optimizer steps.
        batch_size: Windows of a batch, over all processes.
        weights: Of the regimes constant, increasing, random and chunk-wise; they sum to 1.
        learning_rate: Peak rate of AdamW.
        warmup_steps: Steps of linear warm-up, before a cosine to 0 at max_steps.
        weight_decay: Of matrices.
        half: Whether the policy is stored in half precision.
    """

    FREE: ClassVar[frozenset[str]] = Fit.FREE | {"half"}

    max_steps: Annotated[int, at_least(1)] = 2000
    batch_size: Annotated[int, at_least(1)] = 128
    weights: tuple[float, float, float, float] = DEFAULT_WEIGHTS
    learning_rate: Annotated[float, above(0)] = 5e-4
    warmup_steps: Annotated[int, at_least(0)] = 100
    weight_decay: Annotated[float, at_least(0)] = 1e-6
    half: bool = False

    def check(self) -> None:
        """Refuse weights that do not sum to 1, and what `Fit` refuses.

        Raises:
            InputError: Naming the option.
        """
        object.__setattr__(self, "weights", check_weights(self.weights))
        super().check()
