"""The memory of the stream: a ring of actions and the levels of its positions, row by row."""

from collections.abc import Sequence

import torch
from noiseworks.core.errors import InputError
from noiseworks.streaming_dp.levels import ChunkLevels, Levels
from torch import Tensor


class ActionBuffer:
    """Actions [rows, Tp, Da] as a ring, each row with its own offset and levels.

    Dropping the executed actions moves the offset; only fresh noise is written.

    Args:
        spec: Chunks and levels.
        rows: Environments.
        action_dim: Da.
        device: Where the actions live.
    """

    def __init__(
        self, spec: ChunkLevels, rows: int, action_dim: int, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.rows = spec, rows
        self.ring = torch.zeros(rows, spec.horizon, action_dim, device=device)
        # Levels at the end of each row's last cycle; None before the first one.
        self.levels: list[Levels | None] = [None] * rows
        self._offsets = [0] * rows
        positions = torch.arange(spec.horizon, device=device)
        self._orders = [(positions + offset) % spec.horizon for offset in range(spec.horizon)]

    def read(self, rows: Sequence[int], out: Tensor) -> Tensor:
        """Copy rows in the order of their positions to `out` [len(rows), Tp, Da]."""
        for i, row in enumerate(rows):
            torch.index_select(self.ring[row], 0, self._orders[self._offsets[row]], out=out[i])
        return out

    def write(self, rows: Sequence[int], values: Tensor) -> None:
        """Overwrite rows by actions [len(rows), Tp, Da] in the order of their positions."""
        for i, row in enumerate(rows):
            self.ring[row].index_copy_(0, self._orders[self._offsets[row]], values[i])

    def advance(self, row: int, executed: int) -> int:
        """Drop `executed` actions of a row and the positions left over, and move its levels on.

        Returns:
            The position from which on fresh noise has to be written; Tp when nothing was dropped.

        Raises:
            InputError: When the row has not planned yet or `executed` is not in 0 to Ta.
        """
        levels = self.levels[row]
        if levels is None:
            raise InputError(f"environment {row} has no plan to advance; call act or replan first")
        self.levels[row] = self.spec.shifted(levels, executed)
        if executed == 0:
            return self.spec.horizon
        self._offsets[row] = (self._offsets[row] + executed) % self.spec.horizon
        return self.spec.horizon - self.spec.rest - executed

    def forget(self, rows: Sequence[int]) -> None:
        """Drop the memory of rows."""
        for row in rows:
            self.levels[row] = None

    def state(self) -> dict[str, Tensor]:
        """Return copies of actions [rows, Tp, Da] in order and levels int64 [rows, Tp], -2 before a plan."""
        actions = torch.empty_like(self.ring)
        empty = (-2,) * self.spec.horizon
        levels = [empty if row is None else row for row in self.levels]
        return {"actions": self.read(range(self.rows), actions), "levels": torch.tensor(levels)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state of `state`.

        Raises:
            InputError: When shapes differ or levels are out of range.
        """
        actions, levels = state["actions"], state["levels"]
        if actions.shape != self.ring.shape or levels.shape != self.ring.shape[:2]:
            raise InputError(
                f"the state holds actions {tuple(actions.shape)} and levels {tuple(levels.shape)}, this buffer "
                f"needs {tuple(self.ring.shape)} and {tuple(self.ring.shape[:2])}"
            )
        last = self.spec.num_levels - 1
        planned = levels[:, 0] > -2
        if bool((levels[planned] < -1).any()) or bool((levels > last).any()):
            raise InputError(
                f"levels must lie in -1 to {last}, got {int(levels.min())} to {int(levels.max())}"
            )
        rows = zip(levels.tolist(), planned.tolist(), strict=True)
        self.levels = [tuple(row) if known else None for row, known in rows]
        self._offsets = [0] * self.rows
        self.ring.copy_(actions)
