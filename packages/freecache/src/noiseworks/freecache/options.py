"""The options of cached and guided decoding; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Wholes, above, at_least, at_most, below

Reveal = Literal["threshold", "schedule"]
Order = Literal[
    "low_confidence", "random", "origin", "maskgit_plus", "topk_margin", "entropy", "position_weighted"
]
CommitRule = Literal["lazy", "stale", "eager"]
Strategy = Literal["deterministic", "dynamic_threshold", "topk", "topk_relative", "aggressive", "stochastic"]
Windows = Literal["sliding", "block", "token", "prompt"]
Mode = Literal["guided", "speculative"]
MODES = ("none", "cache", "dual", "guide", "both")


@dataclass(frozen=True)
class Sampling(Options):
    """How block-wise decoding draws tokens, and which it reveals when.

    Attributes:
        gen_length: Tokens to generate, a multiple of block_length.
        block_length: Tokens a block.
        reveal: threshold reveals at each step all tokens of the block that are surer than the threshold, and the
            surest in any case; schedule reveals as many as the steps say.
        threshold: Probability of a token above which it is revealed.
        steps: With reveal schedule: steps in all, a multiple of the number of blocks; by default one a token.
        order: With reveal schedule: which tokens come first; by default the host's usual order, low_confidence for
            LLaDA and entropy for Dream.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus, by default all.
        top_k: Tokens kept, by default all.
        early_stop: Ends of text in a row that end a text; 0 decodes every token.
        eps: Last time of Dream's schedule.
    """

    gen_length: Annotated[int, at_least(1)] = 128
    block_length: Annotated[int, at_least(1)] = 32
    reveal: Reveal = "threshold"
    threshold: Annotated[float, at_least(0), at_most(1)] = 0.9
    steps: Annotated[int | None, at_least(1)] = None
    order: Order | None = None
    temperature: Annotated[float, at_least(0)] = 0.0
    top_p: Annotated[float | None, above(0), at_most(1)] = None
    top_k: Annotated[int | None, at_least(1)] = None
    early_stop: Annotated[int, at_least(0)] = 1
    eps: Annotated[float, above(0), below(1)] = 1e-3

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.gen_length // self.block_length

    @property
    def block_steps(self) -> int:
        """Steps of a block with reveal schedule."""
        return (self.steps or self.gen_length) // self.blocks

    def check(self) -> None:
        """Refuse lengths and steps that do not fit each other.

        Raises:
            InputError: When a length is no multiple of another, or steps or an order go without a schedule.
        """
        if self.gen_length % self.block_length:
            raise InputError(
                f"gen_length {self.gen_length} must be a multiple of block_length {self.block_length}"
            )
        if self.reveal == "threshold" and not (self.steps is self.order is None):
            raise InputError(
                "steps and order go with reveal 'schedule'; a threshold decides by itself how many tokens a step"
            )
        if self.steps is not None and self.steps % self.blocks:
            raise InputError(f"steps {self.steps} must be a multiple of the {self.blocks} blocks")


@dataclass(frozen=True)
class Caching(Options):
    """What FreeCache freezes.

    Attributes:
        cache: Whether keys and values are cached; without, everything is computed anew at every step.
        commit: How a finished block is frozen: lazy computes it once more with its final tokens, eager spends a call
            on that, stale freezes it with the masks of its last step (the authors' code).
        sliding: Clean tokens before the block that every step computes anew; 0 freezes up to the block, by default
            four blocks, as in the authors' code (128 and 32). With a guide: tokens to each side of sliding windows.
        refresh_every: Blocks after which everything is computed anew; 0 for never.
    """

    cache: bool = True
    commit: CommitRule = "lazy"
    sliding: Annotated[int | None, at_least(0)] = None
    refresh_every: Annotated[int, at_least(0)] = 0

    def width(self, block_length: int) -> int:
        """Return the clean tokens that windows compute anew."""
        return 4 * block_length if self.sliding is None else self.sliding


@dataclass(frozen=True)
class Guidance(Options):
    """When an autoregressive guide accepts a draft d, by its distribution q at that position, and what is computed.

    Attributes:
        strategy: deterministic takes the guide's likeliest token; dynamic_threshold q(d) > accept_above; topk the
            accept_top likeliest; topk_relative those with q(d) >= accept_ratio max q; aggressive the accept_top
            likeliest, q(d) > accept_floor, or the nucleus of mass accept_nucleus; stochastic with probability q(d).
        accept_above: Of dynamic_threshold; a probability equal to it is rejected.
        accept_top: Of topk and aggressive, by default 5, and of topk_relative, by default 2.
        accept_ratio: Of topk_relative.
        accept_floor: Of aggressive.
        accept_nucleus: Of aggressive.
        windows: Where windows start: sliding goes some tokens to both sides of the last clean one and hides masks
            further right; block, token and prompt start at the block of the first mask, at that mask, or behind the
            prompt.
        verify: Drafts that are compared a step; the guide reads them in chunks of 32 and stops at the first chunk
            with a rejection. In Python None compares all.
        mode: guided writes the model's drafts; speculative, a baseline, writes the guide's token at the first
            rejection, so that the text follows the guide.
        allow_retokenize: Whether a guide with another vocabulary is mapped by text.
    """

    strategy: Strategy = "deterministic"
    accept_above: Annotated[float, at_least(0), below(1)] = 0.1
    accept_top: Annotated[int | None, at_least(1)] = None
    accept_ratio: Annotated[float, at_least(0), at_most(1)] = 0.5
    accept_floor: Annotated[float, at_least(0), at_most(1)] = 0.05
    accept_nucleus: Annotated[float, above(0), at_most(1)] = 0.95
    windows: Windows = "sliding"
    verify: Annotated[int | None, at_least(1)] = 32
    mode: Mode = "guided"
    allow_retokenize: bool = False


@dataclass(frozen=True)
class Timing(Options):
    """What is timed: prompts of random tokens, decoded in turn by each mode.

    Attributes:
        lengths: Prompt lengths, commas between.
        modes: What is compared, commas between: none computes everything anew, and is what the others are compared
            with; cache is FreeCache; dual is Fast-dLLM's dual cache; guide and both are guided, without and with
            FreeCache.
        batch_size: Prompts at once.
        repeats: Timed runs of each mode; the median counts.
        seed: Of the prompts.
    """

    lengths: Annotated[Wholes, at_least(1)] = (128, 1024)
    modes: str = "none,cache"
    batch_size: Annotated[int, at_least(1)] = 1
    repeats: Annotated[int, at_least(1)] = 3
    seed: Annotated[int, at_least(0), below(2**63)] = 0

    @property
    def names(self) -> list[str]:
        """The modes, one by one."""
        return [word.strip() for word in self.modes.split(",")]

    def check(self) -> None:
        """Refuse an unknown mode.

        Raises:
            InputError: Naming the modes.
        """
        wrong = next((word for word in self.names if word not in MODES), None)
        if wrong is not None:
            raise InputError(f"modes must be among {', '.join(MODES)}, got {wrong!r}")


@dataclass(frozen=True)
class Asked(Options):
    """Which problems are asked.

    Attributes:
        problems: How many.
        examples: With countdown: tokens of solved problems before each question; 0 for none.
        batch_size: Problems at once.
        seed: Of the problems, and of the draws.
    """

    problems: Annotated[int, at_least(1)] = 64
    examples: Annotated[int, at_least(0)] = 0
    batch_size: Annotated[int, at_least(1)] = 16
    seed: Annotated[int, at_least(0), below(2**62)] = 0
