"""The options of first-hitting sampling; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Wholes, above, at_least, at_most, below

Variant = Literal["exact", "parallel", "extrapolate", "predictor_corrector"]
Order = Literal["uniform", "confidence", "left_to_right"]
Method = Literal["cdf64", "exponential", "gumbel64", "kernel", "gumbel32", "gumbel16", "gumbel_trunc"]


@dataclass(frozen=True)
class Sampling(Options):
    """How masked tokens are revealed and drawn.

    Attributes:
        variant: exact reveals one token a call. The others reveal several: parallel from one output, extrapolate and
            predictor_corrector with less of the error that this makes.
        steps: Calls a block of the variants other than exact (predictor calls, for the corrector); by default one a
            masked token.
        order: uniform is the model's own distribution; confidence (surest first) and left_to_right are not.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus, by default all.
        top_k: Tokens kept, by default all.
        method: How tokens are drawn: cdf64, exponential, gumbel64 and kernel are correct; gumbel32, gumbel16 and
            gumbel_trunc are faulty on purpose.
        bound: Largest Gumbel M of method gumbel_trunc, by default that of float32 uniforms, 16.64.
        block_length: Tokens a block, revealed one block after the other, each with a clock of its own; by default
            one block. Blocks are counted from the first position.
    """

    variant: Variant = "exact"
    steps: Annotated[int | None, at_least(1)] = None
    order: Order = "uniform"
    temperature: Annotated[float, at_least(0)] = 1.0
    top_p: Annotated[float | None, above(0), at_most(1)] = None
    top_k: Annotated[int | None, at_least(1)] = None
    method: Method = "cdf64"
    bound: float | None = None
    block_length: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse a number of steps where each token has its own call.

        Raises:
            InputError: On `steps` with variant exact.
        """
        if self.variant == "exact" and self.steps is not None:
            raise InputError(
                "variant 'exact' takes one call a token; leave steps out or use variant 'parallel'"
            )


@dataclass(frozen=True)
class Length(Options):
    """How much is generated, and from which seed.

    Attributes:
        gen_length: Tokens to generate.
        seed: Prompt i is completed with seed + i, where the draw is a correct one.
    """

    gen_length: Annotated[int, at_least(1)] = 128
    seed: Annotated[int, at_least(0), below(2**62)] = 0


@dataclass(frozen=True)
class Comparison(Options):
    """What is compared on unconditional samples.

    Attributes:
        gen_length: Tokens a sample, after one end-of-text token as prompt.
        samples: Samples of each row of the table.
        grid: Numbers of time steps T of the ancestral baseline, commas between.
        baseline: How the baseline draws.
        seed: Of the samples.
    """

    gen_length: Annotated[int, at_least(1)] = 64
    samples: Annotated[int, at_least(1)] = 16
    grid: Annotated[Wholes, at_least(1)] = (64, 256, 1024)
    baseline: Method = "gumbel64"
    seed: Annotated[int, at_least(0), below(2**62)] = 0


@dataclass(frozen=True)
class Precision(Options):
    """A distribution, and the uniforms that it is drawn with.

    Attributes:
        probs: Probabilities with commas between, or zipf:V for p ∝ 1 / rank.
        dtype: Type of the uniforms.
        delta: Probability that a masked token is revealed in the ancestral step.
    """

    probs: str = "0.5,0.3,0.15,0.05"
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    delta: Annotated[float, above(0), below(1)] = 1e-4


@dataclass(frozen=True)
class Bound(Options):
    """How the evidence bound is estimated.

    Attributes:
        draws: Random masks of each number of masks.
        seed: Of the masks.
    """

    draws: Annotated[int, at_least(1)] = 4
    seed: Annotated[int, at_least(0), below(2**63)] = 0
