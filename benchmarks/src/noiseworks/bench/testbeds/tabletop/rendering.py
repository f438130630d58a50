"""Pictures of the table from its state, with analytic anti-aliasing; only bounding boxes are drawn."""

import numpy as np
from noiseworks.bench.testbeds.tabletop import simulation as sim
from noiseworks.core.errors import InputError

SIZES = (32, 48, 64)
TABLE = np.array([222, 214, 200], np.float32)
DISC_COLORS = np.array([[214, 48, 49], [39, 174, 96], [41, 98, 220]], np.float32)
PAD_COLORS = np.array([[178, 146, 196], [240, 190, 110]], np.float32)
RAIL, HANDLE_COLOR = np.array([160, 140, 120], np.float32), np.array([92, 64, 40], np.float32)
BUTTON_COLOR, PRESSED_COLOR = np.array([250, 220, 60], np.float32), np.array([120, 90, 10], np.float32)
GRIPPER_COLOR = np.array([30, 30, 34], np.float32)
HANDLE_HALF = np.array([0.05, 0.07])
OPEN_RADIUS, OPEN_WIDTH, CLOSED_RADIUS = 0.11, 0.045, 0.06


def render(states: np.ndarray, size: int = 64) -> np.ndarray:
    """Return pictures of states, y up, the whole table in view.

    Args:
        states: [N, 21] of `TabletopBatch.state`.
        size: Side in pixels: 32, 48 or 64.

    Returns:
        uint8 [N, size, size, 3].

    Raises:
        InputError: When the size or the shape is another.
    """
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    states = np.asarray(states, np.float32)
    if states.ndim != 2 or states.shape[1] != sim.STATE_DIM:
        raise InputError(f"states must have shape [N, {sim.STATE_DIM}], got {states.shape}")
    out = np.empty((len(states), size, size, 3), np.uint8)
    for first in range(0, len(states), 256):
        part = states[first : first + 256]
        out[first : first + 256] = _draw(part, size)
    return out


def _draw(states: np.ndarray, size: int) -> np.ndarray:
    """Draw from the back to the front: pads, drawer, button, discs, gripper."""
    image = np.empty((len(states), size, size, 3), np.float32)
    image[:] = TABLE
    for side in range(2):
        centre = states[:, 13 + 2 * side : 15 + 2 * side]
        _box(image, centre, np.full(2, sim.PAD_HALF), PAD_COLORS[side])
    middle = sim.HANDLE_X + sim.DRAWER_LENGTH / 2
    rail = np.broadcast_to(np.array([middle, sim.HANDLE_Y], np.float32), (len(states), 2))
    _box(image, rail, np.array([sim.DRAWER_LENGTH / 2 + 0.05, 0.02]), RAIL)
    handle = np.stack((states[:, 17], np.full(len(states), sim.HANDLE_Y, np.float32)), 1)
    _box(image, handle, HANDLE_HALF, HANDLE_COLOR)
    pressed = states[:, 20:21]
    _ring(
        image,
        states[:, 18:20],
        sim.BUTTON_RADIUS,
        None,
        BUTTON_COLOR + pressed * (PRESSED_COLOR - BUTTON_COLOR),
    )
    for disc in range(3):
        _ring(image, states[:, 7 + 2 * disc : 9 + 2 * disc], sim.DISC_RADIUS, None, DISC_COLORS[disc])
    closed = states[:, 2] > 0
    for rows, radius, width in ((~closed, OPEN_RADIUS, OPEN_WIDTH), (closed, CLOSED_RADIUS, None)):
        chosen = np.flatnonzero(rows)
        if len(chosen):
            _ring(image, states[chosen, :2], radius, width, GRIPPER_COLOR, chosen)
    return np.round(image).astype(np.uint8)


def _patch(
    centre: np.ndarray, half: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return columns and rows of a box around each centre [N, w], and their pixels' table coordinates."""
    scale = size / 2
    sides = np.ceil(2 * half * scale).astype(int) + 2
    grids = []
    for axis, sign in ((0, 1.0), (1, -1.0)):
        begin = np.floor((sign * centre[:, axis] + 1 - half[axis]) * scale - 0.5).astype(np.int64)
        index = begin[:, None] + np.arange(sides[axis])
        grids.append((index, sign * ((index + 0.5) / scale - 1)))
    (columns, x), (rows, y) = grids
    return columns, rows, x, y


def _blend(
    image: np.ndarray,
    cover: np.ndarray,
    columns: np.ndarray,
    rows: np.ndarray,
    color: np.ndarray,
    which: np.ndarray,
) -> None:
    """Mix a colour into the pixels of a patch by its share of each pixel; what is off the picture is left out."""
    size = image.shape[1]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    cover = np.where(inside, cover, 0)[..., None].astype(np.float32)
    where = which[:, None, None], rows.clip(0, size - 1)[:, :, None], columns.clip(0, size - 1)[:, None, :]
    old = image[where]
    mixed = old + cover * (np.broadcast_to(color, (len(which), 3))[:, None, None] - old)
    # Clipped indices repeat pixels of the border: write each pixel inside only.
    image[tuple(np.broadcast_to(i, inside.shape)[inside] for i in where)] = mixed[inside]


def _box(image: np.ndarray, centre: np.ndarray, half: np.ndarray, color: np.ndarray) -> None:
    size = image.shape[1]
    columns, rows, x, y = _patch(centre, half, size)
    across = (0.5 + (half[0] - np.abs(x - centre[:, :1])) * size / 2).clip(0, 1)
    up = (0.5 + (half[1] - np.abs(y - centre[:, 1:])) * size / 2).clip(0, 1)
    _blend(image, up[:, :, None] * across[:, None, :], columns, rows, color, np.arange(len(centre)))


def _ring(
    image: np.ndarray,
    centre: np.ndarray,
    radius: float,
    width: float | None,
    color: np.ndarray,
    which: np.ndarray | None = None,
) -> None:
    """Draw discs, or rings of a width measured inwards from the radius."""
    size = image.shape[1]
    columns, rows, x, y = _patch(centre, np.full(2, radius), size)
    dx, dy = x - centre[:, :1], y - centre[:, 1:]
    distance = np.sqrt(dx[:, None, :] ** 2 + dy[:, :, None] ** 2)
    cover = (0.5 + (radius - distance) * size / 2).clip(0, 1)
    if width is not None:
        cover = np.minimum(cover, (0.5 + (distance - radius + width) * size / 2).clip(0, 1))
    _blend(image, cover, columns, rows, color, np.arange(len(centre)) if which is None else which)
