"""Fair timing: what is compared takes turns, so that a machine that slows down slows all of it alike.

times = in_turns({"full": lambda turn: full(x), "cached": lambda turn: cached(x)}, repeats=5, device=x.device)
times["cached"].median, times["cached"].interval(), times["cached"].ratio(times["full"])
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any

from noiseworks.core.checks import check_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Turn:
    """One call of one arm.

    Attributes:
        seconds: How long it took, with the device's work.
        result: What it returned.
    """

    seconds: float
    result: Any


@dataclass(frozen=True)
class Times:
    """The calls of one arm, in order; the same index of two arms is the same turn.

    Attributes:
        seconds: Of each call.
        results: What each call returned; empty unless they were kept.
    """

    seconds: tuple[float, ...]
    results: tuple[Any, ...] = ()

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return bounds of the median; see `median_interval`."""
        return median_interval(self.seconds, confidence)

    def ratio(self, base: "Times") -> float:
        """Return the median over turns of the seconds as a multiple of those of `base` in the same turn."""
        return statistics.median(a / b for a, b in zip(self.seconds, base.seconds, strict=True))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the two order statistics that hold the median with at least a probability, whatever the distribution.

    Below six values no pair does at 95 %, and the range is returned.

    Args:
        values: Independent measurements, at least one.
        confidence: Of the interval.
    """
    ordered, n = sorted(values), len(values)
    rank, below = 0, 1 / 2**n  # below: P(fewer than rank + 1 of n fair coins show heads)
    while rank + 1 < n / 2 and 2 * (below + comb(n, rank + 1) / 2**n) <= 1 - confidence:
        rank += 1
        below += comb(n, rank) / 2**n
    return ordered[rank], ordered[n - 1 - rank]


def synchronize(device: "torch.device | str | None") -> None:
    """Wait until a GPU has done what it was told; a CPU always has."""
    kind = str(device).partition(":")[0]
    if kind in ("cuda", "mps"):
        import torch

        getattr(torch, kind).synchronize(*([device] if kind == "cuda" else []))


def work_clock(device: "torch.device | str") -> Callable[[], float]:
    """Return the clock of work on a device: on a CPU the process's own time, in which other programs do not count."""
    return time.process_time if str(device).startswith("cpu") else time.perf_counter


def turns(
    arms: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    warmup: int = 1,
    device: "torch.device | str | None" = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Turn]]:
    """Yield what each turn of all arms took and returned; every second turn goes through the arms backwards.

    Args:
        arms: Name -> what is timed; called with the number of the turn, which is negative for warm-ups.
        repeats: Turns that count.
        warmup: Turns before them, which are not yielded.
        device: Of the work; a GPU is waited for before and after each call.
        clock: What gives the seconds.

    Raises:
        InputError: When `repeats` is below 1 or `warmup` below 0.
    """
    check_number("repeats", repeats, low=1, integer=True)
    check_number("warmup", warmup, low=0, integer=True)
    for turn in range(-warmup, repeats):
        found = {}
        for name in reversed(arms) if turn % 2 else arms:
            synchronize(device)
            begin = clock()
            result = arms[name](turn)
            synchronize(device)
            found[name] = Turn(clock() - begin, result)
        if turn >= 0:
            yield {name: found[name] for name in arms}


def in_turns(
    arms: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    warmup: int = 1,
    device: "torch.device | str | None" = None,
    clock: Callable[[], float] = time.perf_counter,
    keep: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Times]:
    """Return the times of arms that take turns; arguments and errors as in `turns`.

    Args:
        arms: Name -> what is timed.
        repeats: Turns that count.
        warmup: Turns before them.
        device: Of the work.
        clock: What gives the seconds.
        keep: Whether the results are kept too.
        progress: Called with the number of turns done.
    """
    found: dict[str, list[Turn]] = {name: [] for name in arms}
    for done, turn in enumerate(turns(arms, repeats, warmup=warmup, device=device, clock=clock), 1):
        for name, one in turn.items():
            found[name].append(one if keep else Turn(one.seconds, None))
        if progress is not None:
            progress(done)
    return {
        name: Times(tuple(one.seconds for one in of), tuple(one.result for one in of) if keep else ())
        for name, of in found.items()
    }
