"""What a planner sees: a bird's-eye view of 64 x 64 metres, and eight numbers."""

import numpy as np
from noiseworks.kits.driving.scenes import NOTHING, PADDING, Scenes, on_strips

EXTENT = 32.0  # metres to each side
PIXELS = 64
CHANNELS = ("drivable", "routes", "standing", "moving", "v_x", "v_y", "junction")
FASTEST = 15.0  # m/s that become 1


def observe(scenes: Scenes, *, commanded: bool = False, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return views, int8 [B, 7, 64, 64] in units of 1/127, and status, float32 [B, 8].

    Args:
        scenes: The scenes.
        commanded: Whether the status says which route the expert took; else the command is unknown.
        batch: Scenes that are drawn at once.
    """
    parts = [rasterise(scenes[first : first + batch]) for first in range(0, len(scenes), batch)]
    return np.concatenate(parts), status(scenes, commanded=commanded)


def rasterise(scenes: Scenes) -> np.ndarray:
    """Return views, int8 [B, 7, 64, 64]: row i is x in [i - 32, i - 31), column j likewise y."""
    batch = len(scenes)
    middles = np.arange(PIXELS) - EXTENT + 0.5
    grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(1, -1, 2)
    on = on_strips(scenes.strips, np.broadcast_to(grid, (batch, PIXELS**2, 2)))
    on &= (scenes.lanes != PADDING)[..., None]
    view = np.zeros((batch, len(CHANNELS), PIXELS, PIXELS), np.float32)
    view[:, 0] = on.any(axis=1).reshape(batch, PIXELS, PIXELS)
    view[:, 6] = (on & scenes.junction[..., None]).any(axis=1).reshape(batch, PIXELS, PIXELS)
    # Every route of the map, whether or not it can be driven well, so that the view does not tell.
    mapped = np.abs(scenes.routes).sum(axis=(2, 3)) > 0
    _mark(view, 1, scenes.routes, mapped)
    boxes = scenes.boxes()[:, :, 0]
    span = np.linspace(-1, 1, 10)
    ahead, left = boxes[..., 3, None, None] * span[:, None], boxes[..., 4, None, None] * span[None, ::2]
    cos, sin = np.cos(boxes[..., 2])[..., None, None], np.sin(boxes[..., 2])[..., None, None]
    body = np.stack(
        (
            boxes[..., 0, None, None] + ahead * cos - left * sin,
            boxes[..., 1, None, None] + ahead * sin + left * cos,
        ),
        axis=-1,
    ).reshape(*boxes.shape[:2], -1, 2)
    pace = scenes.track_speeds[..., 0]
    real, moves = scenes.kinds != NOTHING, pace > 0.05
    _mark(view, 2, body, real & ~moves)
    _mark(view, 3, body, real & moves)
    _mark(view, 4, body, real & moves, pace * np.cos(boxes[..., 2]) / FASTEST)
    _mark(view, 5, body, real & moves, pace * np.sin(boxes[..., 2]) / FASTEST)
    return np.rint(127 * np.clip(view, -1, 1)).astype(np.int8)


def status(scenes: Scenes, *, commanded: bool) -> np.ndarray:
    """Return command (one of four, one-hot), velocity and acceleration of the ego, float32 [B, 8]."""
    found = np.zeros((len(scenes), 8), np.float32)
    command = scenes.command if commanded else np.full(len(scenes), 3)
    found[np.arange(len(scenes)), command] = 1.0
    found[:, 4], found[:, 6] = scenes.speed, scenes.acceleration
    return found


def _mark(
    view: np.ndarray, channel: int, points: np.ndarray, real: np.ndarray, values: np.ndarray | None = None
) -> None:
    cell = np.floor(points + EXTENT).astype(np.int64)
    inside = ((cell >= 0) & (cell < PIXELS)).all(axis=-1) & real[..., None]
    scene, item, place = np.nonzero(inside)
    x, y = cell[scene, item, place].T
    view[scene, channel, x, y] = 1.0 if values is None else values[scene, item]
