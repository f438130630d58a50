"""Cached outputs at run time: the plan compiled to a program, and the store that it works on.

All decisions are taken when a plan is compiled. A run of consecutive reused blocks is one addition: the sum of
their stored outputs is built when one of them has changed and kept otherwise, so a step without any computed
block adds a single tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import Any, NamedTuple

import torch
from noiseworks.bac.hosts import Branch, Stack
from noiseworks.bac.plan import CachePlan
from noiseworks.core.errors import InputError
from torch import Tensor

Observer = Callable[[int, int, Tensor], None]


class Compute(NamedTuple):
    """Compute a block and add it; `keep` tells whether a later step reuses it."""

    block: int
    keep: bool


class Add(NamedTuple):
    """Add the stored outputs of blocks `start` to `stop` - 1; `build` tells whether their sum is out of date."""

    start: int
    stop: int
    slot: int
    build: bool


@dataclass(frozen=True)
class Step:
    """What happens at one network call.

    Attributes:
        layers: For each layer the instructions that start in it.
        untouched: Whether every block is computed and none is stored: the network runs as it is.
        reused: The single addition of a step without computed blocks, else None.
    """

    layers: tuple[tuple[Compute | Add, ...], ...]
    untouched: bool
    reused: Add | None


def compile_plan(plan: CachePlan, branches: int) -> tuple[Step, ...]:
    """Return a program, one entry a step.

    Args:
        plan: The plan.
        branches: Blocks of a layer.
    """
    table = plan.table
    blocks, steps = table.shape
    slots: dict[tuple[int, int], int] = {}
    built: dict[tuple[int, int], int] = {}
    changed = [0] * blocks
    program = []
    for k in range(steps):
        layers: list[list[Compute | Add]] = [[] for _ in range(blocks // branches)]
        start = 0
        while start < blocks:
            layer = layers[start // branches]
            if table[start, k]:
                changed[start] = k
                layer.append(Compute(start, bool(k + 1 < steps and not table[start, k + 1])))
                start += 1
                continue
            stop = start
            while stop < blocks and not table[stop, k]:
                stop += 1
            run = (start, stop)
            slot = slots.setdefault(run, len(slots))
            build = built.get(run, -1) < max(changed[start:stop])
            if build:
                built[run] = k
            layer.append(Add(start, stop, slot, build))
            start = stop
        flat = [instruction for layer in layers for instruction in layer]
        untouched = all(isinstance(one, Compute) and not one.keep for one in flat)
        reused = flat[0] if len(flat) == 1 and isinstance(flat[0], Add) else None
        program.append(Step(tuple(map(tuple, layers)), untouched, reused))
    return tuple(program)


class BlockCache:
    """Stored outputs of one replan, and where in the plan it is.

    A step is as many network calls as the plan says (one, or two with guidance in two calls or a Heun solver);
    each of them has stored outputs of its own. A new replan starts after `restart()`, and by itself when the
    network's time argument does not go on in the plan's direction.

    Attributes:
        position: Step, -1 before the first.
        call: Which of a step's network calls.
        time: The network's time argument.
        kept: What a forward pass keeps for one replan, by call; forgotten with it.

    Args:
        plan: The plan.
        stack: What it is applied to.
        observer: Called as (step, block, output) for every computed block; None for nobody.
    """

    def __init__(self, plan: CachePlan, stack: Stack, observer: Observer | None = None) -> None:
        self.plan, self.observer = plan, observer
        self.program = compile_plan(plan, len(stack.family.branches))
        slots = [one.slot for step in self.program for layer in step.layers for one in layer if len(one) == 4]
        self._slots = 1 + max(slots, default=-1)
        self.restart()

    def restart(self) -> None:
        """Forget the stored outputs: the next call is step 0."""
        calls = self.plan.calls_per_step
        self.position = self.call = -1
        self.step = self.program[0]
        self.time = self._first = 0.0
        self.kept: list[Any] = [None] * calls
        self._shape: torch.Size | None = None
        self._thread: int | None = None
        self._stores: list[Tensor | None] = [None] * calls
        self._sums: list[list[Tensor | None]] = [[None] * self._slots for _ in range(calls)]

    def begin(self, timestep: Tensor | float, sample: Tensor) -> Step:
        """Count a network call and return what it does.

        Args:
            timestep: The network's time argument; one value for the whole batch counts.
            sample: Noisy actions [B, T, Da].

        Raises:
            InputError: When a replan has more calls than the plan, comes to one time twice, its batch changes, or
                another thread has begun it.
        """
        time = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        if self.position >= 0 and self._starts_anew(time):
            self.restart()
        if self._shape is not None and sample.shape != self._shape:
            raise InputError(
                f"the batch changed from {tuple(self._shape)} to {tuple(sample.shape)} within a replan; call "
                "restart() first"
            )
        if self.position < 0:
            self._thread = get_ident()
        elif self._thread != get_ident():
            raise InputError(
                "two threads call one network with a plan at once, which would mix their stored outputs; attach the "
                "plan to a copy for each thread, or let them take turns by whole replans"
            )
        self.call = (self.call + 1) % self.plan.calls_per_step
        self.time, self._shape = time, sample.shape
        if self.call == 0:
            self.position, self._first = self.position + 1, time
            self.step = self.choose(timestep, sample)
        return self.step

    def _starts_anew(self, time: float) -> bool:
        """Return whether a call belongs to the next replan: noise or time has gone back."""
        ahead = time - self._first if self.plan.ascending else self._first - time
        if self.call + 1 < self.plan.calls_per_step:
            return ahead < 0
        if ahead == 0 and self.position > 0:
            raise InputError(
                f"the network was called twice at the time {time:g} of a replan: a sampler with several calls a step "
                "(guidance in two calls, Heun) needs a plan with calls_per_step, and a new replan a restart()"
            )
        return ahead <= 0

    def choose(self, timestep: Tensor | float, sample: Tensor) -> Step:
        """Return what happens at the current position.

        Args:
            timestep: The network's time argument, for rules that look at it.
            sample: Noisy actions [B, T, Da], likewise.

        Raises:
            InputError: When the plan has ended.
        """
        if self.position >= len(self.program):
            raise InputError(
                f"the plan has {len(self.program)} steps and the sampler made one call more; make a plan for its "
                "number of steps or use plan.for_steps"
            )
        return self.program[self.position]

    def run_layer(self, layer: Any, index: int, x: Tensor, call: Any, branches: Sequence[Branch]) -> Tensor:
        """Return the residual stream [B, T, D] after the instructions that start in a layer.

        Args:
            layer: The layer.
            index: Its place.
            x: The residual stream [B, T, D].
            call: What the branches read.
            branches: What the layer adds, in order.
        """
        for one in self.step.layers[index]:
            if len(one) == 4:
                x = x + self.sum_of(one)
                continue
            output = branches[one.block % len(branches)](layer, x, call)
            if self.observer is not None:
                self.observer(self.position, one.block, output)
            if one.keep:
                self._keep(one.block, output)
            x = x + output
        return x

    def sum_of(self, run: Add) -> Tensor:
        """Return the summed stored outputs of a run of reused blocks."""
        sums = self._sums[self.call]
        if run.build:
            sums[run.slot] = self._stores[self.call][run.start : run.stop].sum(0)
        return sums[run.slot]

    def _keep(self, block: int, output: Tensor) -> None:
        store = self._stores[self.call]
        if store is None:
            store = self._stores[self.call] = output.new_empty((len(self.plan.blocks), *output.shape))
        store[block] = output
