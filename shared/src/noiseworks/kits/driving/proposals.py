"""Proposals along a route, as PDM-Closed makes them: lateral offsets times speeds of the intelligent-driver model."""

from dataclasses import replace

import numpy as np
from noiseworks.kits.driving.scenes import NOTHING, PEDESTRIAN, Scenes, arc_lengths, project, project_each
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
    offset = np.repeat(OFFSETS, len(SPEEDS))
    wanted = limit[:, None] * np.tile(SPEEDS, len(OFFSETS))
    scenes, near = _near_first(scenes, routes)
    reach = (scenes.sizes[..., 1] + WIDTH) / 2
    # What is not near cannot block: it counts as infinitely far beside.
    along, aside = np.zeros(near.shape), np.full(near.shape, np.inf)
    scene, item, when = np.nonzero(near)
    along[near], aside[near] = project_each(routes, scenes.tracks[scene, item, when, :2], scene)
    half = np.where(scenes.kinds == PEDESTRIAN, scenes.sizes.max(axis=-1), scenes.sizes[..., 0]) / 2
    start, _ = project(routes, np.zeros((batch, 1, 2)))
    place = np.broadcast_to(start, (batch, proposals)).copy()
    speed = np.broadcast_to(scenes.speed[:, None], (batch, proposals)).copy()
    travelled = [place.copy()]
    for step in range(STATES - 1):
        ahead = along[:, None, :, step] - half[:, None] - (place[..., None] + FRONT)
        blocks = np.abs(aside[:, None, :, step] - offset[:, None]) <= reach[:, None]
        blocks &= ahead > -FRONT
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
    tangent = np.unwrap(_filled(tangent), axis=-1)
    middle = (lengths[:, 1:] + lengths[:, :-1]) / 2
    x, y, heading = (np.empty(travelled.shape) for _ in range(3))
    for index, place in enumerate(travelled):
        heading[index] = np.interp(place, middle[index], tangent[index])
        x[index] = np.interp(place, lengths[index], routes[index, :, 0])
        y[index] = np.interp(place, lengths[index], routes[index, :, 1])
    gone = np.clip((travelled - start[..., None]) / 15.0, 0, 1)
    shift = offset[:, None] * (3 * gone**2 - 2 * gone**3)
    slope = offset[:, None] * (6 * gone - 6 * gone**2) / 15.0
    x -= shift * np.sin(heading)
    y += shift * np.cos(heading)
    return np.stack((x, y, heading + np.arctan(slope)), axis=-1)


def _filled(rows: np.ndarray) -> np.ndarray:
    """Return directions whose missing ones, where a line repeats its last point, are the last known; 0 without any."""
    known, place = np.isfinite(rows), np.arange(rows.shape[1])
    last = np.where(known, place, 0).max(axis=1)
    filled = np.take_along_axis(rows, np.minimum(place, last[:, None]), axis=1)
    return np.where(known.any(axis=1)[:, None], filled, 0.0)


def _near_first(scenes: Scenes, routes: np.ndarray) -> tuple[Scenes, np.ndarray]:
    """Return scenes cut to the objects that come near the box around the route, and when they are, bool [B, M, 40].

    Where fewer do than elsewhere, others that do not are left behind them.
    """
    centres = scenes.tracks[:, :, : STATES - 1, :2]
    room = ((scenes.sizes[..., 1] + WIDTH) / 2 + max(OFFSETS))[..., None]
    near = np.broadcast_to(scenes.kinds[..., None] != NOTHING, centres.shape[:3]).copy()
    for axis in (0, 1):
        line, there = routes[:, None, :, axis], centres[..., axis]
        near &= there >= line.min(axis=-1, keepdims=True) - room
        near &= there <= line.max(axis=-1, keepdims=True) + room
    ever = near.any(axis=-1)
    order = np.argsort(~ever, axis=1, kind="stable")[:, : max(1, int(ever.sum(axis=1).max()))]
    rows = np.arange(len(scenes))[:, None]
    names = ("tracks", "sizes", "kinds", "track_speeds")
    return replace(scenes, **{name: getattr(scenes, name)[rows, order] for name in names}), near[rows, order]
