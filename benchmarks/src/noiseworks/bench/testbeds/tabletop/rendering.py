"""Pictures and depth maps of the table from its state, with analytic anti-aliasing; only bounding boxes are drawn."""

from typing import NamedTuple

import numpy as np
from noiseworks.bench.testbeds.tabletop import simulation as sim
from noiseworks.core.errors import InputError

SIZES = sim.IMAGE_SIZES
TABLE = np.array([222, 214, 200], np.float32)
DISC_COLORS = np.array([[214, 48, 49], [39, 174, 96], [41, 98, 220]], np.float32)
PAD_COLORS = np.array([[178, 146, 196], [240, 190, 110]], np.float32)
RAIL, HANDLE_COLOR = np.array([160, 140, 120], np.float32), np.array([92, 64, 40], np.float32)
BUTTON_COLOR, PRESSED_COLOR = np.array([250, 220, 60], np.float32), np.array([120, 90, 10], np.float32)
GRIPPER_COLOR = np.array([30, 30, 34], np.float32)


class Palette(NamedTuple):
    """What every shape is painted with, float32 [C] each; discs red, green, blue, pads left, right."""

    table: np.ndarray
    pads: np.ndarray
    rail: np.ndarray
    handle: np.ndarray
    button: np.ndarray
    pressed: np.ndarray
    discs: np.ndarray
    gripper: np.ndarray


COLORS = Palette(
    TABLE, PAD_COLORS, RAIL, HANDLE_COLOR, BUTTON_COLOR, PRESSED_COLOR, DISC_COLORS, GRIPPER_COLOR
)
# Heights over the table: pads are thin, discs and the button low, the gripper is above everything.
HEIGHTS = Palette(
    *(np.array(value, np.float32)[..., None] for value in (0, [10, 10], 20, 90, 60, 30, [120, 120, 120], 240))
)
HANDLE_HALF = np.array([0.05, 0.07])
# Widest reach of a shape over the table's edge.
MARGIN = 0.2
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
    return _draw(states, size, COLORS)


def render_depth(states: np.ndarray, size: int = 64) -> np.ndarray:
    """Return heights over the table as a depth camera above it sees them, uint8 [N, size, size, 1].

    Args:
        states: [N, 21] of `TabletopBatch.state`.
        size: Side in pixels: 32, 48 or 64.

    Raises:
        InputError: When the size or the shape is another.
    """
    return _draw(states, size, HEIGHTS)


def _draw(states: np.ndarray, size: int, palette: Palette) -> np.ndarray:
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    states = np.asarray(states, np.float32)
    if states.ndim != 2 or states.shape[1] != sim.STATE_DIM:
        raise InputError(f"states must have shape [N, {sim.STATE_DIM}], got {states.shape}")
    out = np.empty((len(states), size, size, len(palette.table)), np.uint8)
    for first in range(0, len(states), 64):  # a batch of pictures stays in the cache
        part = states[first : first + 64]
        out[first : first + 64] = _Canvas(len(part), size, palette).draw(part)
    return out


def film(observations: np.ndarray, *, scale: int = 3, columns: int = 6) -> list[np.ndarray]:
    """Return frames that show episodes side by side; one that is over keeps its last picture.

    Args:
        observations: What `evaluate(record=True)` kept of episodes, [E, S, 21 or more], NaN after an end.
        scale: Times that a picture of 64 pixels is enlarged.
        columns: Episodes in a row.

    Returns:
        S frames, uint8 [H, W, 3].
    """
    states = observations[..., : sim.STATE_DIM]
    lengths = np.isfinite(states[..., 0]).sum(1)
    steps = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    tiles = [render(states[row, steps[row]]) for row in range(len(states))]
    columns = min(columns, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=2) for i in range(0, len(tiles), columns)]
    return list(np.concatenate(rows, axis=1).repeat(scale, axis=1).repeat(scale, axis=2))


class _Canvas:
    """Float pictures with a margin, so that a shape at the edge needs no clipping."""

    def __init__(self, n: int, size: int, palette: Palette) -> None:
        self.palette = palette
        self.size, self.margin = size, int(np.ceil(MARGIN * size / 2)) + 2
        self.side = size + 2 * self.margin
        self.pixels = np.empty((n * self.side * self.side, len(palette.table)), np.float32)
        self.pixels[:] = palette.table
        self.base = np.arange(n) * self.side * self.side

    def draw(self, states: np.ndarray) -> np.ndarray:
        """Return the pictures of states, drawn from the back to the front, uint8 [n, size, size, C]."""
        n, paint = len(states), self.palette
        for side in range(2):
            centre = states[:, 13 + 2 * side : 15 + 2 * side]
            self.box(centre, np.full(2, sim.PAD_HALF), paint.pads[side])
        middle = sim.HANDLE_X + sim.DRAWER_LENGTH / 2
        rail = np.broadcast_to(np.array([middle, sim.HANDLE_Y], np.float32), (n, 2))
        self.box(rail, np.array([sim.DRAWER_LENGTH / 2 + 0.05, 0.02]), paint.rail)
        handle = np.stack((states[:, 17], np.full(n, sim.HANDLE_Y, np.float32)), 1)
        self.box(handle, HANDLE_HALF, paint.handle)
        color = paint.button + states[:, 20:21] * (paint.pressed - paint.button)
        self.disc(states[:, 18:20], sim.BUTTON_RADIUS, color)
        for disc in range(3):
            self.disc(states[:, 7 + 2 * disc : 9 + 2 * disc], sim.DISC_RADIUS, paint.discs[disc])
        closed = states[:, 2:3] > 0
        radius = np.where(closed, CLOSED_RADIUS, OPEN_RADIUS).astype(np.float32)
        inner = np.where(closed, -1.0, OPEN_RADIUS - OPEN_WIDTH).astype(np.float32)
        self.disc(states[:, :2], OPEN_RADIUS, paint.gripper, radius[:, :, None], inner[:, :, None])
        image = self.pixels.reshape(n, self.side, self.side, -1)
        inside = slice(self.margin, self.margin + self.size)
        return np.rint(image[:, inside, inside]).astype(np.uint8)

    def box(self, centre: np.ndarray, half: np.ndarray, color: np.ndarray) -> None:
        """Draw boxes around centres [n, 2] with half sides [2]."""
        index, dx, dy = self._patch(centre, half)
        across = (0.5 + (half[0] - np.abs(dx)) * self.size / 2).clip(0, 1)
        up = (0.5 + (half[1] - np.abs(dy)) * self.size / 2).clip(0, 1)
        self._blend(up[:, :, None] * across[:, None, :], index, color)

    def disc(
        self,
        centre: np.ndarray,
        reach: float,
        color: np.ndarray,
        radius: np.ndarray | None = None,
        inner: np.ndarray | None = None,
    ) -> None:
        """Draw discs of radius `reach`; or of a radius [n, 1, 1] up to it, with a hole of radius `inner`."""
        index, dx, dy = self._patch(centre, np.full(2, reach))
        distance = np.sqrt(dx[:, None, :] ** 2 + dy[:, :, None] ** 2)
        cover = (0.5 + ((reach if radius is None else radius) - distance) * self.size / 2).clip(0, 1)
        if inner is not None:
            cover = np.minimum(cover, (0.5 + (distance - inner) * self.size / 2).clip(0, 1))
        self._blend(cover, index, color)

    def _patch(self, centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return flat pixels [n, h, w] of the boxes around centres, and the pixels' offsets dx [n, w], dy [n, h]."""
        scale = self.size / 2
        index, offsets = [], []
        for axis, sign in ((0, 1.0), (1, -1.0)):
            middle = sign * centre[:, axis] + 1
            begin = np.floor((middle - half[axis]) * scale - 0.5).astype(np.int64)
            count = int(np.ceil(2 * half[axis] * scale)) + 2
            pixel = begin[:, None] + np.arange(count)
            index.append(pixel + self.margin)
            offsets.append(((pixel + 0.5) / scale - middle[:, None]).astype(np.float32))
        columns, rows = index
        flat = (self.base[:, None] + rows * self.side)[:, :, None] + columns[:, None, :]
        return flat, offsets[0], offsets[1]

    def _blend(self, cover: np.ndarray, index: np.ndarray, color: np.ndarray) -> None:
        """Mix a colour, [C] or [n, C], into pixels by its share of each."""
        old = self.pixels[index]
        color = color if color.ndim == 1 else color[:, None, None]
        self.pixels[index] = old + cover[..., None].astype(np.float32) * (color - old)
