"""Scenes from numbers: a road, traffic that follows it, people who cross, things that stand around."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from noiseworks.bench.testbeds.drive.roads import BACK, ROADS, SPACING, Road
from noiseworks.core.checks import check_number
from noiseworks.kits.driving.proposals import idm
from noiseworks.kits.driving.scenes import (
    NOTHING,
    PADDING,
    PEDESTRIAN,
    STATIC,
    TIMES,
    VEHICLE,
    Scenes,
)
from noiseworks.kits.driving.tracking import STEP

TEMPLATES = tuple(ROADS)
SHARES = (0.12, 0.16, 0.2, 0.26, 0.18, 0.08)  # of the templates
STRIPS, ROUTES, POINTS = 12, 3, 240
VEHICLES, PEOPLE, THINGS = 12, 4, 3
OBJECTS = VEHICLES + PEOPLE + THINGS
PATHS, PATH_POINTS = 4, 400
CAR, PERSON, CONE = (4.6, 1.9), (0.6, 0.6), (0.5, 0.5)


@dataclass(frozen=True)
class Drawn:
    """Scenes before an expert has driven them.

    Attributes:
        scenes: With every route of the map admissible and the first one chosen.
        templates: Index in `TEMPLATES`, int [B].
        picks: A uniform number each, which decides the expert's choice, [B].
    """

    scenes: Scenes
    templates: np.ndarray
    picks: np.ndarray


def draw(seed: int, indices: Sequence[int], attempt: int = 0) -> Drawn:
    """Return the scenes of a seed with these indices; each depends on (seed, index, attempt) alone.

    Args:
        seed: Of the set.
        indices: Of the scenes.
        attempt: Another try at scenes in which no route could be driven well.
    """
    check_number("seed", seed, low=0, integer=True)
    streams = [np.random.default_rng((seed, int(index), attempt)) for index in indices]
    templates = np.array([rng.choice(len(TEMPLATES), p=SHARES) for rng in streams])
    roads = [ROADS[TEMPLATES[kind]](rng) for kind, rng in zip(templates, streams, strict=True)]
    scenes = make_scenes(roads, streams)
    return Drawn(scenes, templates, np.array([rng.random() for rng in streams]))


def make_scenes(roads: Sequence[Road], streams: Sequence[np.random.Generator]) -> Scenes:
    """Return scenes on roads with traffic drawn from each one's generator."""
    batch = len(roads)
    strips, lanes = np.zeros((batch, STRIPS, 6)), np.full((batch, STRIPS), PADDING)
    junction = np.zeros((batch, STRIPS), bool)
    routes, admissible = np.zeros((batch, ROUTES, POINTS, 2)), np.zeros((batch, ROUTES), bool)
    commands = np.zeros((batch, ROUTES), np.int64)
    paths = np.zeros((batch, PATHS, PATH_POINTS, 2))
    path, place = np.full((batch, VEHICLES), -1), np.zeros((batch, VEHICLES))
    speeds, wanted = np.zeros((batch, VEHICLES)), np.ones((batch, VEHICLES))
    tracks, moves = np.zeros((batch, OBJECTS, TIMES, 3)), np.zeros((batch, OBJECTS, TIMES))
    sizes, kinds = np.ones((batch, OBJECTS, 2)), np.full((batch, OBJECTS), NOTHING)
    speed = np.zeros(batch)
    for b, (road, rng) in enumerate(zip(roads, streams, strict=True)):
        count = len(road.strips)
        strips[b, :count], lanes[b, :count] = road.strips, road.lanes
        junction[b, :count] = road.junction
        for r, route in enumerate(road.routes):
            routes[b, r] = _padded(route, POINTS)
        admissible[b, : len(road.routes)], commands[b, : len(road.routes)] = True, road.commands
        for p, one in enumerate(road.paths[:PATHS]):
            paths[b, p] = _padded(one, PATH_POINTS)
        speed[b] = rng.uniform(*road.speeds)
        _put_vehicles(road, rng, speed[b], path[b], place[b], speeds[b], wanted[b])
        _put_others(road, rng, tracks[b], moves[b], sizes[b], kinds[b])
    _drive(paths, path, place, speeds, wanted, tracks, moves)
    present = path >= 0
    kinds[:, :VEHICLES] = np.where(present, VEHICLE, NOTHING)
    sizes[:, :VEHICLES] = CAR
    limit = np.array([road.limit for road in roads])
    zeros = np.zeros(batch)
    chosen = np.zeros(batch, np.int64)
    return Scenes(
        strips,
        lanes,
        junction,
        routes,
        admissible,
        commands,
        chosen,
        tracks,
        sizes,
        kinds,
        moves,
        speed,
        zeros,
        limit,
    )


def _padded(points: np.ndarray, count: int) -> np.ndarray:
    kept = points[:count]
    return np.concatenate((kept, np.repeat(kept[-1:], count - len(kept), axis=0)))


def _put_vehicles(
    road: Road,
    rng: np.random.Generator,
    ego: float,
    path: np.ndarray,
    place: np.ndarray,
    speeds: np.ndarray,
    wanted: np.ndarray,
) -> None:
    """Place vehicles on the road's paths, none of them near the ego in its own lane."""
    index = 0
    for number, points in enumerate(road.paths[:PATHS]):
        length = (len(points) - 1) * SPACING
        s = float(rng.uniform(0, 30))
        while s < length - 5 and index < VEHICLES:
            own = number in road.own
            ahead = s - BACK
            here = not own or ahead > 14 or (ahead < -12 and rng.random() < 0.3)
            if here and rng.random() < 0.65:
                pace = road.limit * rng.uniform(0.4, 1.1)
                path[index], place[index] = number, s
                wanted[index] = min(pace, ego) if own and ahead < 0 else pace
                speeds[index] = wanted[index] * rng.uniform(0.7, 1.0)
                index += 1
            s += float(rng.uniform(12, 40))


def _put_others(
    road: Road,
    rng: np.random.Generator,
    tracks: np.ndarray,
    moves: np.ndarray,
    sizes: np.ndarray,
    kinds: np.ndarray,
) -> None:
    times = STEP * np.arange(TIMES)
    index = VEHICLES
    for x, y, heading in road.crossings:
        for _ in range(int(rng.integers(0, 3))):
            if index >= VEHICLES + PEOPLE:
                break
            side, pace = (1.0 if rng.random() < 0.5 else -1.0), float(rng.uniform(0.6, 1.8))
            start = side * float(rng.uniform(3, 12))
            across = start - side * pace * times
            tracks[index, :, 0] = x + rng.uniform(-1, 1) - across * np.sin(heading)
            tracks[index, :, 1] = y + across * np.cos(heading)
            tracks[index, :, 2] = heading - side * np.pi / 2
            moves[index], sizes[index], kinds[index] = pace, PERSON, PEDESTRIAN
            index += 1
    index = VEHICLES + PEOPLE
    for x, y, heading in road.parked:
        tracks[index] = (x, y, heading)
        sizes[index], kinds[index] = CAR, VEHICLE
        index += 1
    while index < OBJECTS and rng.random() < 0.4:
        right, left = road.edges
        y = right - rng.uniform(-0.1, 0.8) if rng.random() < 0.5 else left + rng.uniform(-0.1, 0.8)
        tracks[index] = (rng.uniform(6, 40), y, 0.0)
        sizes[index], kinds[index] = CONE, STATIC
        index += 1


def _drive(
    paths: np.ndarray,
    path: np.ndarray,
    place: np.ndarray,
    speeds: np.ndarray,
    wanted: np.ndarray,
    tracks: np.ndarray,
    moves: np.ndarray,
) -> None:
    """Let vehicles follow their paths by the intelligent-driver model, and write where they are."""
    scene = np.arange(len(path))[:, None]
    along, pace = place.copy(), speeds.copy()
    same = (path[:, :, None] == path[:, None]) & (path[:, :, None] >= 0)
    same &= ~np.eye(VEHICLES, dtype=bool)
    last = PATH_POINTS - 2
    for step in range(TIMES):
        low = np.clip((along / SPACING).astype(np.int64), 0, last)
        first = paths[scene, path, low]
        share = np.clip(along / SPACING - low, 0, 1)[..., None]
        delta = paths[scene, path, low + 1] - first
        tracks[:, :VEHICLES, step, :2] = first + share * delta
        dx, dy = delta[..., 0], delta[..., 1]
        still = (dx == 0) & (dy == 0)  # past the end of a path
        heading = np.arctan2(dy, dx)
        before = tracks[:, :VEHICLES, max(step - 1, 0), 2]
        tracks[:, :VEHICLES, step, 2] = np.where(still, before, heading)
        moves[:, :VEHICLES, step] = np.where((path >= 0) & ~still, pace, 0)
        apart = along[:, None] - along[:, :, None]
        gaps = np.where(same & (apart > 0), apart, 200.0)
        nearest = gaps.argmin(axis=-1)
        gap = np.take_along_axis(gaps, nearest[..., None], -1)[..., 0] - CAR[0]
        lead = np.where(gap < 190, np.take_along_axis(pace, nearest, 1), pace)
        faster = np.maximum(pace + STEP * idm(pace, wanted, gap, lead), 0)
        along, pace = along + STEP * (pace + faster) / 2, faster
