"""The maps of the mazes, and the shortest paths in them.

A map is text: `#` wall, `.` free, `G` goal, `S` the fixed start (without one, starts are drawn). Cells have side 1;
row i lies at y = i + 0.5 and y points down, column j at x = j + 0.5.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError

# umaze, medium and large are the maps of D4RL's PointMaze; the number is the limit of steps.
MAPS: dict[str, tuple[int, str]] = {
    "open": (100, "####### #.....# #.....# #....G# #######"),
    "umaze": (150, "##### #G..# ###.# #...# #####"),
    "medium": (250, "######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#.G# ########"),
    "large": (
        300,
        "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# ##.#.#.#.### #..#...#.G.# "
        "############",
    ),
    "fork": (
        100,
        "########### #.........# #.#######.# #S#######G# #.#######.# #.#######.# #.#######.# #.........# ###########",
    ),
}
DEFAULT_STEPS = 300
_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Layout:
    """A map that is closed by walls, has one goal and is connected.

    Attributes:
        name: Its name, or `custom`.
        rows: The map, one string a row.
        max_steps: Limit of steps of an episode.
    """

    name: str
    rows: tuple[str, ...]
    max_steps: int

    def __post_init__(self) -> None:
        width = len(self.rows[0]) if self.rows else 0
        if any(len(row) != width for row in self.rows) or width < 3 or len(self.rows) < 3:
            raise InputError("a layout needs at least 3 rows of one length of at least 3 characters")
        if unknown := sorted(set("".join(self.rows)) - set("#.GS")):
            raise InputError(f"a layout is made of # . G S, got {' '.join(map(repr, unknown))}")
        counts = {mark: "".join(self.rows).count(mark) for mark in "GS"}
        if counts["G"] != 1 or counts["S"] > 1:
            raise InputError(f"a layout needs one G and at most one S, got {counts['G']} and {counts['S']}")
        border = (
            *self.rows[0],
            *self.rows[-1],
            *(row[0] for row in self.rows),
            *(row[-1] for row in self.rows),
        )
        if set(border) != {"#"}:
            raise InputError("a layout must be closed by walls: put # along its whole border")
        if (self.distances[self.cell_index(self.goal)] < 0).any():
            raise InputError("a layout must be connected: some free cells cannot reach the goal")

    @cached_property
    def walls(self) -> np.ndarray:
        """Whether a cell is wall, bool [rows, columns]."""
        return np.array([[mark == "#" for mark in row] for row in self.rows])

    @cached_property
    def cells(self) -> np.ndarray:
        """Free cells (row, column) in reading order, int64 [F, 2]."""
        return np.argwhere(~self.walls)

    @cached_property
    def index(self) -> np.ndarray:
        """Number of each free cell, -1 for walls, int64 [rows * columns]."""
        table = np.full(self.walls.shape, -1)
        table[tuple(self.cells.T)] = np.arange(len(self.cells))
        return table.reshape(-1)

    @cached_property
    def goal(self) -> tuple[int, int]:
        """Row and column of the goal."""
        return self._find("G")

    @cached_property
    def starts(self) -> np.ndarray:
        """Numbers of the cells in which episodes start: S, or every free cell but the goal, int64 [n]."""
        if any("S" in row for row in self.rows):
            return np.array([self.cell_index(self._find("S"))])
        return np.flatnonzero(np.arange(len(self.cells)) != self.cell_index(self.goal))

    @cached_property
    def distances(self) -> np.ndarray:
        """Cells on the shortest path from target t to cell c, int64 [F, F] as [t, c]; -1 where there is none."""
        out = np.full((len(self.cells), len(self.cells)), -1)
        for target in range(len(self.cells)):
            out[target, target] = 0
            waiting = deque([target])
            while waiting:
                cell = waiting.popleft()
                for other in self._around(cell):
                    if out[target, other] < 0:
                        out[target, other] = out[target, cell] + 1
                        waiting.append(other)
        return out

    @cached_property
    def next_cell(self) -> np.ndarray:
        """Number of the next cell on a shortest path from cell c to target t, int64 [F, F] as [t, c].

        Of several, the first in the order up, down, left, right; the target's own next cell is itself.
        """
        out = np.tile(np.arange(len(self.cells))[:, None], (1, len(self.cells)))
        for target in range(len(self.cells)):
            for cell in range(len(self.cells)):
                nearer = (
                    o for o in self._around(cell) if self.distances[target, o] < self.distances[target, cell]
                )
                out[target, cell] = next(nearer, target)
        return out

    def cell_index(self, cell: Sequence[int]) -> int:
        """Return the number of a free cell (row, column).

        Raises:
            InputError: When it is a wall or outside.
        """
        i, j = cell
        if not (0 <= i < len(self.rows) and 0 <= j < len(self.rows[0])) or self.walls[i, j]:
            raise InputError(f"row {i}, column {j} of the layout {self.name} is no free cell")
        return int(self.index[i * len(self.rows[0]) + j])

    def centre(self, numbers: np.ndarray) -> np.ndarray:
        """Return the centres (x, y) of free cells by number [...], float64 [..., 2]."""
        return self.cells[numbers][..., ::-1] + 0.5

    def _find(self, mark: str) -> tuple[int, int]:
        return next((i, row.index(mark)) for i, row in enumerate(self.rows) if mark in row)

    def _around(self, cell: int) -> list[int]:
        i, j = self.cells[cell]
        return [self.cell_index((i + a, j + b)) for a, b in _NEIGHBOURS if not self.walls[i + a, j + b]]


@cache
def _named(name: str) -> Layout:
    steps, text = MAPS[name]
    return Layout(name, tuple(text.split()), steps)


def make_layout(layout: str | Sequence[str] | Layout) -> Layout:
    """Return a layout by name, or from the rows of a map of one's own.

    Raises:
        InputError: When the name is unknown, or the map is open, has not one goal or is not connected.
    """
    if isinstance(layout, Layout):
        return layout
    if isinstance(layout, str):
        check_choice("layout", layout, tuple(MAPS))
        return _named(layout)
    return Layout("custom", tuple(layout), DEFAULT_STEPS)
