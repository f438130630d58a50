"""Pictures of mazes from above, films of episodes, and their paths in one picture."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from noiseworks.bench.testbeds.maze.layouts import Layout
from noiseworks.bench.testbeds.maze.simulation import GOAL_RADIUS, RADIUS
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError

WALL, FLOOR = np.array([70, 74, 84], np.float32), np.array([240, 238, 232], np.float32)
GOAL, BODY = np.array([120, 196, 140], np.float32), np.array([206, 66, 56], np.float32)
FRAME_SIZE = 128


@lru_cache(maxsize=64)
def _background(layout: Layout, size: int, goal: tuple[int, int]) -> tuple[np.ndarray, float, np.ndarray]:
    """Return walls, floor and goal, float32 [size, size, 3], pixels a cell, and the corner of the map (x, y)."""
    rows, columns = layout.walls.shape
    scale = size / max(rows, columns)
    corner = np.array([(size - columns * scale) / 2, (size - rows * scale) / 2])
    fine = (np.arange(4 * size) + 0.5) / 4
    x, y = (fine - corner[0]) / scale, (fine - corner[1]) / scale
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    inside = ((i >= 0) & (i < rows))[:, None] & ((j >= 0) & (j < columns))
    wall = layout.walls[np.clip(i, 0, rows - 1)][:, np.clip(j, 0, columns - 1)]
    image = np.where((wall | ~inside)[..., None], WALL, FLOOR)
    centre = goal[1] + 0.5, goal[0] + 0.5
    near = ((x[None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 <= GOAL_RADIUS**2) & ~wall & inside
    image = np.where(near[..., None], GOAL, image)
    return image.reshape(size, 4, size, 4, 3).mean((1, 3)), scale, corner


def render(
    layout: Layout, states: np.ndarray, size: int = FRAME_SIZE, goal: tuple[int, int] | None = None
) -> np.ndarray:
    """Return pictures of states from above, y down, with analytic anti-aliasing of the body.

    Args:
        layout: The maze.
        states: x, y and more, [N, 2 or more].
        size: Side in pixels, at least 16.
        goal: Row and column of the goal shown; the layout's own by default.

    Returns:
        uint8 [N, size, size, 3].
    """
    check_number("size", size, low=16, integer=True)
    if np.ndim(states) != 2 or np.shape(states)[1] < 2:
        raise InputError(f"states must have shape [N, 2 or more], got {np.shape(states)}")
    background, scale, corner = _background(layout, size, goal or layout.goal)
    pixel = np.arange(size)
    cover = []
    for axis in range(2):
        middle = np.asarray(states, np.float64)[:, axis, None] * scale + corner[axis]
        low, high = middle - RADIUS * scale, middle + RADIUS * scale
        cover.append((np.minimum(high, pixel + 1) - np.maximum(low, pixel)).clip(0, 1))
    share = (cover[1][:, :, None] * cover[0][:, None, :])[..., None]
    return np.rint(background + share * (BODY - background)).astype(np.uint8)


def film(
    layout: Layout, episodes: Sequence[np.ndarray], *, size: int = FRAME_SIZE, columns: int = 4
) -> list[np.ndarray]:
    """Return frames that show episodes side by side; one that is over keeps its last picture.

    Args:
        layout: The maze.
        episodes: States of each episode, [L, 2 or more].
        size: Side of a tile in pixels.
        columns: Tiles in a row.

    Returns:
        As many frames as the longest episode has states, uint8 [H, W, 3].

    Raises:
        InputError: When there is no episode.
    """
    if not len(episodes):
        raise InputError("a film needs at least one episode")
    longest, columns = max(map(len, episodes)), min(columns, len(episodes))
    tiles = [
        render(layout, np.asarray(states)[np.minimum(np.arange(longest), len(states) - 1)], size)
        for states in episodes
    ]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=2) for i in range(0, len(tiles), columns)]
    return list(np.concatenate(rows, axis=1))


def draw_paths(layout: Layout, episodes: Sequence[np.ndarray], size: int = 2 * FRAME_SIZE) -> np.ndarray:
    """Return one picture with the paths of episodes, from blue (the first step) to red (the last).

    Args:
        layout: The maze.
        episodes: States of each episode, [L, 2 or more].
        size: Side in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    check_number("size", size, low=16, integer=True)
    background, scale, corner = _background(layout, size, layout.goal)
    image = background.copy()
    early, late = np.array([52, 96, 200], np.float32), BODY
    for states in episodes:
        place = np.asarray(states, np.float64)[:, :2]
        # Ten points between two states leave no gaps: a step covers at most 0.3.
        points = np.arange(0, len(place) - 1 + 1e-9, 0.1) if len(place) > 1 else np.zeros(1)
        share = points / max(len(place) - 1, 1)
        at = np.stack([np.interp(points, np.arange(len(place)), place[:, axis]) for axis in range(2)], 1)
        column, row = np.clip((at * scale + corner).astype(int), 0, size - 1).T
        image[row, column] = early + share[:, None] * (late - early)
    return np.rint(image).astype(np.uint8)
