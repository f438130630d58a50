"""Proposals along a route, as PDM-Closed makes them: lateral offsets times speeds of the intelligent-driver model."""

from dataclasses import replace

import numpy as np
from noiseworks.kits.driving.scenes import NOTHING, PEDESTRIAN, Scenes, arc_lengths, project
from noiseworks.kits.driving.tracking import STATES, STEP
from noiseworks.kits.driving.vehicle import FRONT, WIDTH

OFFSETS = (-1.0, 0.0, 1.0)  # metres to the left
SPEEDS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the limit
GAP, HEADWAY, ACCELERATION, DECELERATION, EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
BOUNDS = (-3.0, 1.5)
FAR = 200.0


def idm(speed: np.ndarray, wanted: np.ndarray, gap: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Return the intelligent driver's acceleration (Treiber et al. 2000), clipped to [-3, 1.5] m/s^2.

    Args:
        speed: Own speed v.
        wanted: Speed without traffic, above 0.
        gap: Metres to the vehicle in front.
        lead: Its speed.
    """
    closing = speed * (speed - lead) / (2 * np.sqrt(ACCELERATION * DECELERATION))
    desired = GAP + HEADWAY * speed + closing
    free = (speed / np.maximum(wanted, 1e-3)) ** EXPONENT
    return np.clip(ACCELERATION * (1 - free - (desired / np.maximum(gap, 0.1)) ** 2), *BOUNDS)


def propose(scenes: Scenes, routes: np.ndarray, limit: np.ndarray | None = None) -> np.ndarray:
    """Return 15 proposals along a route of each scene, poses at 0.1 s, [B, 15, 41, 3].

    The vehicle in front is the nearest object whose centre is on the path at the time, within half the two widths.

    Args:
        scenes: The scenes.
        routes: Centrelines [B, P, 2].
        limit: Speed limit, [B]; by default the scenes' own.
    """
    limit = scenes.limit if limit is None else limit
    batch, proposals = len(scenes), len(OFFSETS) * len(SPEEDS)
    scenes = _real_first(scenes)
    offset = np.repeat(OFFSETS, len(SPEEDS))
    wanted = limit[:, None] * np.tile(SPEEDS, len(OFFSETS))
    reach = (scenes.sizes[..., 1] + WIDTH) / 2
    along, aside = _places(scenes, routes, reach)
    half = np.where(scenes.kinds == PEDESTRIAN, scenes.sizes.max(axis=-1), scenes.sizes[..., 0]) / 2
    start, _ = project(routes, np.zeros((batch, 1, 2)))
    place = np.broadcast_to(start, (batch, proposals)).copy()
    speed = np.broadcast_to(scenes.speed[:, None], (batch, proposals)).copy()
    travelled = [place.copy()]
    for step in range(STATES - 1):
        ahead = along[:, None, :, step] - half[:, None] - (place[..., None] + FRONT)
        blocks = np.abs(aside[:, None, :, step] - offset[:, None]) <= reach[:, None]
        blocks &= (ahead > -FRONT) & (scenes.kinds != NOTHING)[:, None]
        distance = np.where(blocks, ahead, FAR)
        nearest = distance.argmin(axis=-1)
        gap = np.take_along_axis(distance, nearest[..., None], -1)[..., 0]
        lead = np.take_along_axis(scenes.track_speeds[:, :, step], nearest, 1)
        lead = np.where(gap < FAR, lead, speed)
        acceleration = idm(speed, wanted, gap, lead)
        faster = np.maximum(speed + STEP * acceleration, 0)
        place += STEP * (speed + faster) / 2
        speed = faster
        travelled.append(place.copy())
    return drive_along(routes, np.stack(travelled, axis=-1), offset, start)


def _places(scenes: Scenes, routes: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far along and beside the route objects are at each step, [B, M, 40] each.

    Those that never come near the box around the route cannot block it, and count as infinitely far beside.
    """
    centres = scenes.tracks[:, :, : STATES - 1, :2]
    room = (reach + max(OFFSETS))[..., None, None]
    low, high = (find(axis=1)[:, None, None] for find in (routes.min, routes.max))
    near = ((centres >= low - room) & (centres <= high + room)).all(axis=-1).any(axis=-1)
    scene, item = np.nonzero(near & (scenes.kinds != NOTHING))
    along, aside = np.zeros(centres.shape[:3]), np.full(centres.shape[:3], np.inf)
    along[scene, item], aside[scene, item] = project(routes[scene], centres[scene, item])
    return along, aside


def drive_along(
    routes: np.ndarray, travelled: np.ndarray, offset: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return poses [B, N, K, 3] on routes [B, P, 2] after distances [B, N, K], moved to the left by offsets [N].

    An offset is taken up over the first 15 metres, so that the path begins at the ego.

    Args:
        routes: Centrelines.
        travelled: Metres along them.
        offset: Metres to the left.
        start: Where the ego stands on its route, [B, 1].
    """
    lengths = arc_lengths(routes)
    steps = np.diff(routes, axis=1)
    tangent = np.arctan2(steps[..., 1], steps[..., 0])
    tangent = np.where((steps**2).sum(axis=-1) > 0, tangent, np.nan)
    tangent = np.stack([np.unwrap(_filled(row)) for row in tangent])
    middle = (lengths[:, 1:] + lengths[:, :-1]) / 2
    found = np.empty((*travelled.shape, 3))
    for index, (line, length, place) in enumerate(zip(routes, lengths, travelled, strict=True)):
        heading = np.interp(place, middle[index], tangent[index])
        gone = np.clip((place - start[index]) / 15.0, 0, 1)
        shift = offset[:, None] * (3 * gone**2 - 2 * gone**3)
        slope = offset[:, None] * (6 * gone - 6 * gone**2) / 15.0
        x = np.interp(place, length, line[:, 0]) - shift * np.sin(heading)
        y = np.interp(place, length, line[:, 1]) + shift * np.cos(heading)
        found[index] = np.stack((x, y, heading + np.arctan(slope)), axis=-1)
    return found


def _filled(row: np.ndarray) -> np.ndarray:
    """Return directions whose missing ones, where a line repeats its last point, are the last known."""
    known = np.flatnonzero(np.isfinite(row))
    if not len(known):
        return np.zeros_like(row)
    return row[np.minimum(np.arange(len(row)), known[-1])]


def _real_first(scenes: Scenes) -> Scenes:
    """Return scenes whose padded objects are last, cut to the largest number of real ones."""
    count = max(1, int((scenes.kinds != NOTHING).sum(axis=1).max()))
    order = np.argsort(scenes.kinds == NOTHING, axis=1, kind="stable")[:, :count]
    rows = np.arange(len(scenes))[:, None]
    names = ("tracks", "sizes", "kinds", "track_speeds")
    return replace(scenes, **{name: getattr(scenes, name)[rows, order] for name in names})
