"""Driving scenes as arrays: roads, routes and recorded traffic, B scenes side by side, padded to the largest.

A road is a union of strips: pieces of constant curvature and width, which are rectangles and arcs of rings, so that
"is this corner on the road" is a few operations and exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from noiseworks.core.errors import InputError

NOTHING, VEHICLE, PEDESTRIAN, STATIC = 0, 1, 2, 3  # kinds of objects
COMMANDS = ("left", "straight", "right", "unknown")
NO_LANE = -1  # of a strip that is drivable and belongs to no lane, such as the inside of a junction
PADDING = -2
TIMES = 51  # states of every object, 0.1 s apart: 5 seconds


@dataclass(frozen=True)
class Scenes:
    """B scenes in the frame of the ego's rear axle at the start (x forward, y left), metres, radians, seconds.

    Attributes:
        strips: Start x, y, heading, length, curvature and half width of each strip, [B, S, 6].
        lanes: Which lane a strip belongs to, `NO_LANE` or `PADDING`, int [B, S].
        junction: Which strips are the inside of a junction, bool [B, S].
        routes: Centrelines of the routes that may be taken, [B, R, P, 2]; past its end a route repeats its last point.
        admissible: Which routes there are, bool [B, R].
        commands: The command of each route, indices of `COMMANDS`, int [B, R].
        chosen: The route that is scored, int [B].
        tracks: Centres and headings of the objects, [B, M, 51, 3].
        sizes: Their lengths and widths, [B, M, 2].
        kinds: `VEHICLE`, `PEDESTRIAN`, `STATIC`, or `NOTHING` for padding, int [B, M].
        track_speeds: Their speeds, [B, M, 51].
        speed: The ego's at the start, [B].
        acceleration: Likewise, [B].
        limit: Speed limit, [B].
    """

    strips: np.ndarray
    lanes: np.ndarray
    junction: np.ndarray
    routes: np.ndarray
    admissible: np.ndarray
    commands: np.ndarray
    chosen: np.ndarray
    tracks: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    track_speeds: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray
    limit: np.ndarray

    def __len__(self) -> int:
        return len(self.speed)

    def __getitem__(self, index: np.ndarray | slice | Sequence[int]) -> "Scenes":
        """Return some of the scenes."""
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def route(self) -> np.ndarray:
        """Centrelines of the chosen routes, [B, P, 2]."""
        return self.routes[np.arange(len(self)), self.chosen]

    @property
    def command(self) -> np.ndarray:
        """Commands of the chosen routes, int [B]."""
        return self.commands[np.arange(len(self)), self.chosen]

    def boxes(self) -> np.ndarray:
        """Return the objects' boxes (centre x, y, heading, half length, half width), [B, M, 51, 5]."""
        half = np.broadcast_to(self.sizes[:, :, None] / 2, (*self.tracks.shape[:3], 2))
        return np.concatenate((self.tracks, half), axis=-1)

    def boxes_at(self, scene: np.ndarray, item: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Return some of the boxes, [K, 5], by their indices in `boxes`, int [K] each."""
        return np.concatenate((self.tracks[scene, item, when], self.sizes[scene, item] / 2), axis=-1)

    def check(self) -> None:
        """Refuse scenes in which nothing can be scored.

        Raises:
            InputError: When a scene has no drivable area or no admissible route, or a number is not finite.
        """
        for name in ("strips", "routes", "tracks", "speed"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"the scenes' {name} hold NaN or infinity")
        bare = np.flatnonzero((self.lanes == PADDING).all(axis=1))
        if len(bare):
            raise InputError(f"scene {bare[0]} has no drivable area; leave it out")
        lost = np.flatnonzero(~self.admissible[np.arange(len(self)), self.chosen])
        if len(lost):
            raise InputError(f"the chosen route of scene {lost[0]} is not admissible; leave the scene out")


def join(parts: Sequence[Scenes]) -> Scenes:
    """Return the scenes of several batches of the same paddings as one."""
    return Scenes(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Scenes)
        }
    )


def on_strips(strips: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return which points lie on which strips, bool [B, S, P]; the edges belong to a strip.

    With s and d the coordinates along and to the left of the strip's start, a straight strip holds 0 <= s <= L,
    |d| <= w. One of curvature k has its centre at (0, 1/k): with R = 1/|k| and d turned to the side of the centre, a
    point at distance r from it and angle a from the start lies R - r to the inside and R a along.

    Args:
        strips: [B, S, 6].
        points: [B, P, 2].
    """
    x, y, heading, length, curvature, width = (part[..., None] for part in np.moveaxis(strips, -1, 0))
    dx, dy = points[:, None, :, 0] - x, points[:, None, :, 1] - y
    cos, sin = np.cos(heading), np.sin(heading)
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    found = (along >= 0) & (along <= length) & (np.abs(across) <= width)
    rows, columns = np.nonzero(strips[..., 4])
    if len(rows):
        bend = curvature[rows, columns]
        radius, side = 1 / np.abs(bend), np.sign(bend)
        s, d = along[rows, columns], side * across[rows, columns]
        angle = np.arctan2(s, radius - d)
        near = np.abs(np.hypot(s, radius - d) - radius) <= width[rows, columns]
        found[rows, columns] = near & (angle >= 0) & (radius * angle <= length[rows, columns])
    return found


def may_hold(strips: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return which strips a point of a box may lie on, bool [B, S]: those whose own bounding box meets it.

    A straight strip lies about the line between its ends; of a bent one it is enough that no point of it is farther
    from its start than its length and its half width together.

    Args:
        strips: [B, S, 6].
        low: The box's smallest coordinates, [B, 2].
        high: Its largest, [B, 2].
    """
    start, (heading, length, curvature, width) = strips[..., :2], np.moveaxis(strips[..., 2:], -1, 0)
    end = start + length[..., None] * np.stack((np.cos(heading), np.sin(heading)), axis=-1)
    bent = (curvature != 0)[..., None]
    room = 1e-6 + np.where(bent, (length + width)[..., None], width[..., None])
    first, last = (np.where(bent, start, find(start, end)) for find in (np.minimum, np.maximum))
    return ((first - room <= high[:, None]) & (last + room >= low[:, None])).all(axis=-1)


def arc_lengths(lines: np.ndarray) -> np.ndarray:
    """Return the length of each line [..., P, 2] up to each of its points, [..., P]."""
    steps = np.linalg.norm(np.diff(lines, axis=-2), axis=-1)
    return np.concatenate((np.zeros_like(steps[..., :1]), np.cumsum(steps, axis=-1)), axis=-1)


def project(lines: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far along its line each point's nearest place is, and how far to its left the point, [B, Q] each.

    Args:
        lines: [B, P, 2]; a line may repeat its last point.
        points: [B, Q, 2].
    """
    shape = points.shape[:2]
    which = np.repeat(np.arange(shape[0]), shape[1])
    along, aside = project_each(lines, points.reshape(-1, 2), which)
    return along.reshape(shape), aside.reshape(shape)


def project_each(lines: np.ndarray, points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `project` does of points that are not equally many to a line, [N] each.

    The nearest point of the line is found by a matrix product a line, then the nearest place on the two pieces beside
    it: the nearest place of all where a line's points are close together compared with its bends.

    Args:
        lines: [B, P, 2]; a line may repeat its last point.
        points: [N, 2].
        which: The line of each point, ascending, int [N].
    """
    nearest, bounds = np.empty(len(points), np.int64), which.searchsorted(np.arange(len(lines) + 1))
    for line, first, last in zip(lines, bounds[:-1], bounds[1:], strict=True):
        squared = -2 * points[first:last] @ line.T + (line**2).sum(axis=-1)
        nearest[first:last] = squared.argmin(axis=-1)
    final, lengths = lines.shape[1] - 2, arc_lengths(lines)
    # A coordinate at a time, and each piece's direction once a line instead of once a point.
    (line_x, line_y), (x, y) = np.moveaxis(lines, -1, 0), points.T
    step_x, step_y = np.diff(line_x), np.diff(line_y)
    sizes = np.sqrt(step_x**2 + step_y**2)
    unit_x, unit_y = step_x / np.maximum(sizes, 1e-9), step_y / np.maximum(sizes, 1e-9)
    along, aside, best = np.zeros(nearest.shape), np.zeros(nearest.shape), np.full(nearest.shape, np.inf)
    for low in (np.clip(nearest - 1, 0, final), np.clip(nearest, 0, final)):
        size, u, v = sizes[which, low], unit_x[which, low], unit_y[which, low]
        dx, dy = x - line_x[which, low], y - line_y[which, low]
        place = np.clip(dx * u + dy * v, 0, size)
        distance = np.sqrt((dx - place * u) ** 2 + (dy - place * v) ** 2)
        closer = (distance < best) & (size > 0)
        along = np.where(closer, lengths[which, low] + place, along)
        aside = np.where(closer, np.where(u * dy - v * dx < 0, -distance, distance), aside)
        best = np.where(closer, distance, best)
    return along, aside
