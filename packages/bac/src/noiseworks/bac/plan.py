"""The cache plan: which block is computed at which denoising step, with its makers and its file format."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.bac.bubbling import bubble_union, most_volatile
from noiseworks.bac.options import Schedule
from noiseworks.bac.scheduling import solve
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.core.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from noiseworks.bac.profiling import FeatureProfile

PLAN_KIND = "bac/plan"
_PARTS = {"sa": "self-attention", "ca": "cross-attention", "ff": "feed-forward"}


@dataclass(frozen=True)
class CachePlan:
    """Which blocks are computed and which reused, step by step in call order.

    Attributes:
        table: bool [num_blocks, K]; true where the block is computed. Column 0 is all true.
        blocks: Names such as `layer0.sa`, in the order in which they act.
        method: How it was made: `block`, `block+bubble`, `unified`, `uniform` or `full`.
        fingerprint: Of the network that it was made for; None when it suits every network with those blocks.
        ascending: Whether the network's time argument grows along the steps (flow matching).
        calls_per_step: Network calls of a step, each of which follows the plan with stored outputs of its own: 2 with
            guidance in two calls or a Heun solver, 4 with Runge-Kutta's classic method.
        settings: What it was made with, for the record.

    Raises:
        InputError: When the table does not fit the names or does not start with an update of every block.
    """

    table: np.ndarray
    blocks: tuple[str, ...]
    method: str
    fingerprint: str | None = None
    ascending: bool = False
    calls_per_step: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = np.ascontiguousarray(self.table, bool)
        if table.ndim != 2 or table.shape[0] != len(self.blocks) or not table.size:
            raise InputError(
                f"a plan of {len(self.blocks)} blocks needs a table [blocks, K], got {table.shape}"
            )
        if not table[:, 0].all():
            raise InputError("every block must be computed at step 0: nothing is stored before it")
        check_number("calls_per_step", self.calls_per_step, low=1, integer=True)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "blocks", tuple(self.blocks))

    @property
    def num_steps(self) -> int:
        """K, steps of a replan."""
        return self.table.shape[1]

    @property
    def kinds(self) -> list[str]:
        """Kind of each block: `sa`, `ca` or `ff`."""
        return [name.rpartition(".")[2] for name in self.blocks]

    @property
    def layers(self) -> list[int]:
        """Layer of each block."""
        return [layer_of(name) for name in self.blocks]

    @property
    def updates(self) -> np.ndarray:
        """How often each block is computed, int64 [num_blocks]."""
        return self.table.sum(1)

    @property
    def share(self) -> float:
        """Share of the block computations of the full run that is left."""
        return float(self.table.mean())

    @property
    def cost(self) -> float:
        """Work of a replan over that of the full run, where a step with any computed block costs one block more.

        A step without computed blocks leaves out the condition too, so plans that agree on their steps are cheaper.
        """
        blocks, steps = self.table.shape
        return float(self.table.sum() + self.table.any(0).sum()) / ((blocks + 1) * steps)

    def schedule(self, block: str) -> list[int]:
        """Return the steps at which a block is computed."""
        return np.flatnonzero(self.table[self.blocks.index(block)]).tolist()

    def for_steps(self, num_steps: int) -> "CachePlan":
        """Return the plan moved to another number of steps: step k goes to round(k (K' - 1) / (K - 1)).

        Raises:
            InputError: When `num_steps` is below 1.
        """
        check_number("num_steps", num_steps, low=1, integer=True)
        table = np.zeros((len(self.blocks), num_steps), bool)
        scale = (num_steps - 1) / max(1, self.num_steps - 1)
        rows, steps = np.nonzero(self.table)
        table[rows, np.rint(steps * scale).astype(int)] = True
        settings = {**self.settings, "moved_from_steps": self.num_steps}
        return replace(self, table=table, settings=settings)

    def flops(self, width: int, tokens: int, memory_tokens: int) -> float:
        """Return the multiply-adds times two of a sample's decoder blocks over a whole replan.

        Args:
            width: d, with feed-forward blocks of 4 d.
            tokens: T, action tokens.
            memory_tokens: S, condition tokens; a stack without cross-attention ignores it.
        """
        cost = {
            "sa": 8 * tokens * width**2 + 4 * tokens**2 * width,
            "ca": 4 * tokens * width**2 + 4 * memory_tokens * width**2 + 4 * tokens * memory_tokens * width,
            "ff": 16 * tokens * width**2,
        }
        return float(sum(count * cost[kind] for count, kind in zip(self.updates, self.kinds, strict=True)))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the plan's directory atomically."""
        config = {
            "blocks": list(self.blocks),
            "method": self.method,
            "fingerprint": self.fingerprint,
            "ascending": self.ascending,
            "calls_per_step": self.calls_per_step,
            "settings": self.settings,
        }
        save_artifact(path, PLAN_KIND, config, {"table": torch.from_numpy(self.table)})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "CachePlan":
        """Read a plan's directory.

        Raises:
            ArtifactError: When it is missing, corrupt or no plan.
        """
        config, tensors = load_artifact(path, PLAN_KIND)
        try:
            return cls(tensors["table"].numpy(), **{**config, "blocks": tuple(config["blocks"])})
        except (KeyError, TypeError, InputError) as error:
            raise ArtifactError(f"{path} holds no cache plan ({error}); make it again") from error

    @classmethod
    def uniform(
        cls,
        blocks: Sequence[str],
        num_steps: int,
        every: int,
        *,
        ascending: bool = False,
        calls_per_step: int = 1,
    ) -> "CachePlan":
        """Return the plan that computes all blocks at every `every`-th step.

        Args:
            blocks: Names of the blocks.
            num_steps: K.
            every: Steps from one update to the next.
            ascending: Whether the network's time argument grows along the steps.
            calls_per_step: Network calls of a step.

        Raises:
            InputError: When a number is out of range.
        """
        check_number("num_steps", num_steps, low=1, integer=True)
        check_number("every", every, low=1, integer=True)
        row = np.arange(num_steps) % every == 0
        return cls(
            np.tile(row, (len(blocks), 1)),
            tuple(blocks),
            "uniform" if every > 1 else "full",
            ascending=ascending,
            calls_per_step=calls_per_step,
            settings={"every": every},
        )

    @classmethod
    def of_updates(cls, profile: "FeatureProfile", updates: int) -> "CachePlan":
        """Return the uniform plan with at most `updates` updates of a profile's policy.

        Raises:
            InputError: When `updates` is not from 1 to K.
        """
        check_number("updates", updates, low=1, high=profile.num_steps, integer=True)
        return cls.uniform(
            profile.blocks,
            profile.num_steps,
            -(-profile.num_steps // updates),
            ascending=profile.ascending,
            calls_per_step=profile.calls_per_step,
        )

    @classmethod
    def unified(
        cls, profile: "FeatureProfile", schedule: Schedule = Schedule(), block: str | None = None
    ) -> "CachePlan":
        """Return the plan in which all blocks follow the schedule of one, by default the first self-attention's.

        Args:
            profile: The policy's profile.
            schedule: How that block's steps are chosen; nothing bubbles.
            block: The block's name.

        Raises:
            InputError: When the block or the metric was not profiled or a number is out of range.
        """
        name = profile.blocks[0] if block is None else block
        steps = _solved(profile, name, schedule)
        settings = {"updates": schedule.updates, "block": name}
        settings |= {"objective": schedule.objective, "metric": schedule.metric}
        return _from_schedules(
            [steps] * len(profile.blocks), profile, "unified", schedule.force_last, settings
        )


def make_plan(profile: "FeatureProfile", schedule: Schedule = Schedule()) -> CachePlan:
    """Return the block-wise adaptive plan (sections 3.2 and 3.3).

    Args:
        profile: The policy's profile.
        schedule: Updates M, the objective, and which blocks bubble.

    Raises:
        InputError: When M is above K, the metric was not profiled or fewer blocks could bubble.
    """
    kinds, layers = profile.kinds, profile.layers
    selected = most_volatile(profile.volatility, kinds, schedule.bubble, schedule.bubble_scope)
    schedules = [_solved(profile, name, schedule) for name in profile.blocks]
    if selected:
        schedules = bubble_union(schedules, kinds, layers, selected)
    settings = vars(schedule) | {"bubbled": [profile.blocks[i] for i in selected]}
    method = "block+bubble" if selected else "block"
    return _from_schedules(schedules, profile, method, schedule.force_last, settings)


def _solved(profile: "FeatureProfile", block: str, schedule: Schedule) -> list[int]:
    matrix = profile.matrix(block, schedule.metric)
    return solve(matrix, schedule.updates, objective=schedule.objective, metric=schedule.metric)


def _from_schedules(
    schedules: Sequence[Sequence[int]],
    profile: "FeatureProfile",
    method: str,
    force_last: bool,
    settings: dict[str, Any],
) -> CachePlan:
    table = np.zeros((len(schedules), profile.num_steps), bool)
    for row, schedule in enumerate(schedules):
        table[row, list(schedule)] = True
    if force_last:
        table[:, -1] = True
    return CachePlan(
        table,
        profile.blocks,
        method,
        profile.fingerprint,
        profile.ascending,
        profile.calls_per_step,
        settings,
    )


def layer_of(block: str) -> int:
    """Return the layer in a block's name: 3 for `layer3.ff`."""
    return int(block.partition(".")[0].removeprefix("layer"))


def describe(block: str) -> str:
    """Return a block's name in words: `layer 3, feed-forward`."""
    return f"layer {layer_of(block)}, {_PARTS[block.rpartition('.')[2]]}"
