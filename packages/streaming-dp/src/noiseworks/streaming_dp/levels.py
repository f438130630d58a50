"""Noise levels of the buffer's positions: the table of chunks, and what a control cycle does to it.

A level is a whole number: 0 is the least noisy, N - 1 the noisiest, -1 is clean. With To observations, a horizon
Tp and Ta actions a cycle there are h = floor((Tp - (To - 1)) / Ta) complete chunks and
r = (Tp - (To - 1)) mod Ta positions left over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Annotated

from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least

REGIMES = ("constant", "increasing", "random", "chunk_wise")
# Weights of the regimes in the authors' training files (the default of their class is chunk-wise alone).
DEFAULT_WEIGHTS = (0.2, 0.0, 0.0, 0.8)

Levels = tuple[int, ...]


@dataclass(frozen=True)
class LevelTable:
    """What a buffer costs.

    Attributes:
        chunks: Complete chunks, h.
        rest: Positions left over, r.
        chunk_of: Chunk of each position.
        levels: Level of each position at the start of an episode.
        calls: Network calls of each cycle until they repeat.
        calls_per_cycle: Their mean, N / h.
        calls_per_action: Network calls per executed action.
    """

    chunks: int
    rest: int
    chunk_of: tuple[int, ...]
    levels: tuple[int, ...]
    calls: tuple[int, ...]
    calls_per_cycle: float
    calls_per_action: float


@dataclass(frozen=True)
class ChunkLevels(Options):
    """The levels of a buffer whose noise grows from chunk to chunk (Høeg et al. 2024, section IV).

    Attributes:
        num_levels: N, at least the number of chunks.
        horizon: Positions of the buffer, Tp.
        n_obs_steps: Observations that the policy reads, To.
        n_action_steps: Actions executed in a cycle, Ta; at most Tp - To + 1.
    """

    num_levels: Annotated[int, at_least(1)] = 100
    horizon: Annotated[int, at_least(1)] = 16
    n_obs_steps: Annotated[int, at_least(1)] = 2
    n_action_steps: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse a horizon that is too short, and more chunks than levels.

        Raises:
            InputError: Naming the number.
        """
        if self.horizon < self.first + self.n_action_steps:
            raise InputError(
                f"the horizon must be at least n_obs_steps - 1 + n_action_steps = "
                f"{self.first + self.n_action_steps}, got {self.horizon}"
            )
        if self.chunks > self.num_levels:
            raise InputError(
                f"{self.chunks} chunks need at least as many levels, got num_levels {self.num_levels}; use more "
                "levels or more actions a chunk"
            )

    @property
    def first(self) -> int:
        """Position of the action for the current observation, To - 1."""
        return self.n_obs_steps - 1

    @property
    def chunks(self) -> int:
        """Complete chunks, h."""
        return (self.horizon - self.first) // self.n_action_steps

    @property
    def rest(self) -> int:
        """Positions left over at the end, r."""
        return (self.horizon - self.first) % self.n_action_steps

    @property
    def executed(self) -> slice:
        """Positions of the first chunk, whose actions are executed."""
        return slice(self.first, self.first + self.n_action_steps)

    @cached_property
    def chunk_of(self) -> Levels:
        """Chunk index c(p) of every position.

        The To - 1 positions of the past belong to the first chunk and the positions left over to the last.
        """
        past = (max(0, p - self.first) // self.n_action_steps for p in range(self.horizon))
        return tuple(min(chunk, self.chunks - 1) for chunk in past)

    @cached_property
    def buffer(self) -> Levels:
        """Levels at the start of an episode, l(p) = floor(N (c(p) + 1) / h) - 1."""
        return tuple(self.num_levels * (chunk + 1) // self.chunks - 1 for chunk in self.chunk_of)

    @property
    def period(self) -> int:
        """Cycles after which the levels repeat, h / gcd(N, h)."""
        return self.chunks // gcd(self.num_levels, self.chunks)

    def calls(self, cycle: int = 0) -> int:
        """Return the network calls of a cycle, floor(N (i + 1) / h) - floor(N i / h); N / h on average."""
        n, h = self.num_levels, self.chunks
        return n * (cycle + 1) // h - n * cycle // h

    def table(self) -> LevelTable:
        """Return levels and network calls of the buffer."""
        mean, calls = self.num_levels / self.chunks, tuple(map(self.calls, range(self.period)))
        return LevelTable(
            self.chunks, self.rest, self.chunk_of, self.buffer, calls, mean, mean / self.n_action_steps
        )

    def cycle(self, start: Levels) -> tuple[Levels, ...]:
        """Return the levels at each network call of the cycle that begins with `start`.

        All positions go down by one a call until the last of the first chunk is clean; clean ones stay.
        """
        return tuple(lowered(start, call) for call in range(start[self.executed.stop - 1] + 1))

    def after(self, start: Levels) -> Levels:
        """Return the levels at the end of the cycle that begins with `start`, before anything is dropped."""
        return lowered(start, start[self.executed.stop - 1] + 1)

    def shifted(self, levels: Levels, executed: int | None = None) -> Levels:
        """Return the levels after `executed` actions (by default Ta) were dropped and noise was appended.

        The positions left over are dropped as well, so that no chunk is ever cut. The positions of the past get
        the label of the next first chunk.

        Args:
            levels: Levels at the end of a cycle.
            executed: 0 to Ta.

        Raises:
            InputError: When `executed` is out of range.
        """
        n = self.n_action_steps if executed is None else executed
        check_number("executed actions", n, low=0, high=self.n_action_steps, integer=True)
        if n == 0:
            return levels
        kept = levels[n : self.horizon - self.rest]
        moved = kept + (self.num_levels - 1,) * (self.horizon - len(kept))
        return (moved[self.first],) * self.first + moved[self.first :]


def lowered(levels: Levels, by: int) -> Levels:
    """Return levels lowered by some steps, clean ones left at -1."""
    return tuple(max(level - by, -1) for level in levels)


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Return the regimes' weights as a tuple.

    Raises:
        InputError: When there are not four weights of at least 0 whose sum is 1.
    """
    if len(weights) != len(REGIMES):
        raise InputError(f"need one weight for each of {', '.join(REGIMES)}, got {len(weights)}")
    for name, weight in zip(REGIMES, weights, strict=True):
        check_number(f"weight of {name}", weight, low=0, high=1)
    if abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"the weights of {', '.join(REGIMES)} must sum to 1, got {sum(weights):g}")
    return tuple(float(weight) for weight in weights)
