"""The options of PPD; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.kits.image_tuning.options import OfflineTuning, PairLoss

FAMILIES = ("sd", "sdxl")
Mix = Literal["embedding", "output"]


@dataclass(frozen=True)
class Support(Options):
    """From which of somebody's choices they are known.

    Attributes:
        choices_each: N, choices that make one embedding.
        reserved: Choices of each person that are kept for embeddings, and never trained on.
        embeddings: Embeddings of each person, from other choices of the reserved ones; training takes one at random.
        support_seed: Of which choices are reserved, and which make an embedding.
    """

    choices_each: Annotated[int, at_least(1)] = 4
    reserved: Annotated[int, at_least(1)] = 4
    embeddings: Annotated[int, at_least(1)] = 1
    support_seed: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse an embedding of more choices than are reserved.

        Raises:
            InputError: Naming both.
        """
        if self.reserved < self.choices_each:
            raise InputError(
                f"reserved must be at least choices_each ({self.choices_each}), got {self.reserved}"
            )


@dataclass(frozen=True)
class Taste(PairLoss):
    """How strongly choices count, and how often nobody is told to have made them.

    Attributes:
        user_dropout: Share of the choices that are trained without their user.
        equal_users: Whether everybody is trained on equally often, instead of every choice.
    """

    user_dropout: Annotated[float, at_least(0), below(1)] = 0.1
    equal_users: bool = False


@dataclass(frozen=True)
class Training(OfflineTuning):
    """Length, optimiser, hardware and bookkeeping of the training.

    Attributes:
        batch_size: Choices of an optimiser step, over all processes; published: 768.
        learning_rate: AdamW's; published for Stable Cascade.
        minibatch: Choices (two images each) of one forward and backward pass, over all processes.
    """

    max_steps: Annotated[int, at_least(1)] = 1000
    batch_size: Annotated[int, at_least(1)] = 768
    learning_rate: Annotated[float, above(0)] = 1e-5
    minibatch: Annotated[int, at_least(1)] = 4

    def check(self) -> None:
        """Refuse weights that the branch, which is trained in 32 bits, cannot meet.

        Raises:
            InputError: Naming the option.
        """
        super().check()
        if self.weights != "float32" and self.precision == "32-true":
            raise InputError(f"weights {self.weights} need a mixed precision: bf16-mixed or 16-mixed")


@dataclass(frozen=True)
class Addressee(Options):
    """For whom images are drawn, and how strongly.

    Attributes:
        user: A name, or a mixture such as a:0.3,b:0.7, whose weights sum to 1.
        user_scale: Strength of the branch: 1 as trained, 0 without it, below 0 the opposite taste.
        mix: What of a mixture's people is averaged: their embedding, or the output of the branch for each.
    """

    user: str
    user_scale: float = 1.0
    mix: Mix = "embedding"

    def weights(self) -> dict[str, float]:
        """Return name -> weight.

        Raises:
            InputError: When the text is no mixture, or the weights do not sum to 1.
        """
        if ":" not in self.user:
            return {self.user: 1.0}
        try:
            parts = [part.rpartition(":") for part in self.user.split(",")]
            found = {name.strip(): float(weight) for name, _, weight in parts}
        except ValueError:
            raise InputError(
                f"user must be a name or a mixture such as a:0.3,b:0.7, got {self.user!r}"
            ) from None
        if not abs(sum(found.values()) - 1) <= 1e-6:  # NaN is no sum either
            raise InputError(f"the weights of {self.user!r} sum to {sum(found.values()):g}, not to 1")
        return found
