"""Roads: six templates, each a few strips, the routes that may be taken, and the paths of other vehicles."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from noiseworks.kits.driving.scenes import NO_LANE

LANE = 3.5  # metres wide
SPACING = 0.5
BACK, AHEAD = 40.0, 120.0  # metres of road behind and ahead of the ego
LEFT, STRAIGHT, RIGHT = 0, 1, 2


@dataclass
class Road:
    """One road as lists; see `kits.driving.Scenes`.

    Attributes:
        strips: (x, y, heading, length, curvature, half width) each.
        lanes: The lane of each strip.
        junction: Whether it is the inside of a junction.
        routes: Points 0.5 m apart from the ego on, [n, 2] each.
        commands: Of each route.
        paths: Points 0.5 m apart that other vehicles follow; the first one is the ego's own lane.
        own: Indices of paths that begin behind the ego in its own lane.
        crossings: (x, y, heading) of places where people may cross the ego's way.
        edges: Lateral positions, right and left, of the ego's road.
        limit: Speed limit, m/s.
        speeds: Range of the ego's speed at the start.
        parked: Centre x, y, heading of vehicles that stand in the way.
    """

    strips: list[tuple[float, ...]] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    junction: list[bool] = field(default_factory=list)
    routes: list[np.ndarray] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    paths: list[np.ndarray] = field(default_factory=list)
    own: tuple[int, ...] = (0,)
    crossings: list[tuple[float, float, float]] = field(default_factory=list)
    edges: tuple[float, float] = (-LANE / 2, LANE / 2)
    limit: float = 13.0
    speeds: tuple[float, float] = (0.0, 13.0)
    parked: list[tuple[float, float, float]] = field(default_factory=list)

    def strip(
        self,
        start: tuple[float, float, float],
        length: float,
        *,
        lane: int,
        curvature: float = 0.0,
        half: float = LANE / 2,
        junction: bool = False,
    ) -> None:
        """Add a strip."""
        self.strips.append((*start, length, curvature, half))
        self.lanes.append(lane)
        self.junction.append(junction)


def trace(
    pieces: list[tuple[float, float]], start: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """Return points 0.5 m apart along pieces of (length, curvature), [n, 2]."""
    x, y, heading = start
    total = sum(length for length, _ in pieces)
    place = np.arange(0.0, total, SPACING)
    found, passed = np.empty((len(place), 2)), 0.0
    for index, (length, curvature) in enumerate(pieces):
        inside = slice(place.searchsorted(passed - 1e-9), place.searchsorted(passed + length, "right"))
        found[inside] = _arc(x, y, heading, place[inside] - passed, curvature)
        if index + 1 < len(pieces):
            x, y = _arc(x, y, heading, np.array([length]), curvature)[0]
            heading += curvature * length
            passed += length
    return found


def lane_change(first: float, last: float, shift: float, length: float = AHEAD) -> np.ndarray:
    """Return a straight line that moves to the left by `shift` metres between two distances, points 0.5 m apart."""
    x = np.arange(0.0, length, SPACING)
    share = np.clip((x - first) / (last - first), 0, 1)
    return np.stack((x, shift * (3 * share**2 - 2 * share**3)), axis=-1)


def straight(rng: np.random.Generator) -> Road:
    """Return one to three lanes of one direction."""
    road = Road(limit=float(rng.uniform(8, 15)), speeds=(0.0, 13.0))
    count = int(rng.integers(1, 4))
    own = int(rng.integers(count))
    _parallel(road, [LANE * (lane - own) for lane in range(count)], own)
    road.routes.append(trace([(AHEAD, 0.0)]))
    road.commands.append(STRAIGHT)
    road.crossings.append((float(rng.uniform(18, 45)), 0.0, 0.0))
    return road


def curve(rng: np.random.Generator) -> Road:
    """Return a bend of 15 to 80 metres with one or two lanes."""
    radius, before = float(rng.uniform(15, 80)), float(rng.uniform(0, 15))
    side = 1.0 if rng.random() < 0.5 else -1.0
    angle = min(1.6, 90 / radius)
    limit = float(min(13.0, np.sqrt(2.5 * radius)))
    road = Road(limit=limit, speeds=(0.0, limit))
    count = int(rng.integers(1, 3))
    own = int(rng.integers(count))
    # The ego's own lane comes first among the paths.
    for lane in (own, *(one for one in range(count) if one != own)):
        offset = LANE * (lane - own)
        bend = 1 / (side * radius - offset)
        length = angle / abs(bend)
        start = (-BACK, offset, 0.0)
        road.strip(start, BACK + before, lane=lane)
        road.strip((before, offset, 0.0), length, lane=lane, curvature=bend)
        x, y = _arc(before, offset, 0.0, np.array([length]), bend)[0]
        road.strip((float(x), float(y), bend * length), 60.0, lane=lane)
        road.paths.append(trace([(BACK + before, 0.0), (length, bend), (60.0, 0.0)], start))
    road.routes.append(trace([(before, 0.0), (angle * radius, side / radius), (60.0, 0.0)]))
    road.commands.append(STRAIGHT)
    road.edges = (-LANE * (own + 0.5), LANE * (count - own - 0.5))
    return road


def junction(rng: np.random.Generator, arms: tuple[bool, bool, bool] = (True, True, True)) -> Road:
    """Return a junction of two-way roads whose arms to the left, ahead and to the right exist or not."""
    road = Road(limit=8.0, speeds=(4.0, 7.5))
    half = 9.0
    x = float(rng.uniform(12, 24))  # of the crossing road's middle
    y = LANE / 2  # of the ego's road's middle
    arm = 70.0
    road.strip((-BACK, 0.0, 0.0), BACK + x - half, lane=0)
    road.strip((x - half, LANE, np.pi), BACK + x - half, lane=1)
    road.strip((x - half, y, 0.0), 2 * half, lane=NO_LANE, half=half, junction=True)
    turn_right, turn_left = 7.0, 9.0
    into_right = x - LANE / 2 - turn_right
    into_left = x + LANE / 2 - turn_left
    if arms[1]:
        road.strip((x + half, 0.0, 0.0), arm, lane=2)
        road.strip((x + half + arm, LANE, np.pi), arm, lane=3)
        road.routes.append(trace([(x + half + arm, 0.0)]))
        road.commands.append(STRAIGHT)
    if arms[0]:
        road.strip((x + LANE / 2, y + half, np.pi / 2), arm, lane=4)
        road.strip((x - LANE / 2, y + half + arm, -np.pi / 2), arm, lane=5)
        quarter = np.pi / 2 * turn_left
        road.routes.append(trace([(into_left, 0.0), (quarter, 1 / turn_left), (arm, 0.0)]))
        road.commands.append(LEFT)
    if arms[2]:
        road.strip((x - LANE / 2, y - half, -np.pi / 2), arm, lane=6)
        road.strip((x + LANE / 2, y - half - arm, np.pi / 2), arm, lane=7)
        quarter = np.pi / 2 * turn_right
        road.routes.append(trace([(into_right, 0.0), (quarter, -1 / turn_right), (arm, 0.0)]))
        road.commands.append(RIGHT)
    # Others keep to the ego's lane behind it, come from the arms and leave the way the ego came, or cross.
    road.paths.append(
        trace([(BACK + x + half + arm, 0.0)] if arms[1] else [(BACK + x - half, 0.0)], (-BACK, 0, 0))
    )
    if arms[1]:
        road.paths.append(trace([(arm + 2 * half + x + BACK, 0.0)], (x + half + arm, LANE, np.pi)))
    if arms[0] and arms[2]:
        road.paths.append(trace([(2 * arm + 2 * half, 0.0)], (x - LANE / 2, y + half + arm, -np.pi / 2)))
        road.paths.append(trace([(2 * arm + 2 * half, 0.0)], (x + LANE / 2, y - half - arm, np.pi / 2)))
    for there in ((x - half - 2.5, 0.0, 0.0), (x + half + 2.5, 0.0, 0.0)):
        if there[0] < x or arms[1]:
            road.crossings.append(there)
    road.edges = (-LANE / 2, 1.5 * LANE)
    return road


def t_junction(rng: np.random.Generator) -> Road:
    """Return a junction that lacks one arm."""
    missing = int(rng.integers(3))
    return junction(rng, tuple(arm != missing for arm in range(3)))


def blocked(rng: np.random.Generator) -> Road:
    """Return three lanes with a vehicle parked in the middle one, which may be passed on either side."""
    road = Road(limit=float(rng.uniform(7, 11)), speeds=(2.0, 8.0))
    _parallel(road, [0.0, LANE, -LANE], 1)
    there = float(rng.uniform(21, 31))
    road.parked.append((there, 0.0, 0.0))
    for command, shift in ((LEFT, LANE), (RIGHT, -LANE)):
        road.routes.append(lane_change(2.0, there - 7.0, shift))
        road.commands.append(command)
    return road


def merge(rng: np.random.Generator) -> Road:
    """Return a lane that ends: the ego goes over to its left."""
    road = Road(limit=float(rng.uniform(8, 14)), speeds=(3.0, 11.0))
    end = float(rng.uniform(35, 60))
    road.strip((-BACK, 0.0, 0.0), BACK + end, lane=0)
    road.strip((-BACK, LANE, 0.0), BACK + AHEAD, lane=1)
    road.paths.append(trace([(BACK + end, 0.0)], (-BACK, 0.0, 0.0)))
    road.paths.append(trace([(BACK + AHEAD, 0.0)], (-BACK, LANE, 0.0)))
    first = float(rng.uniform(3, end - 32))
    road.routes.append(lane_change(first, first + 25.0, LANE))
    road.commands.append(STRAIGHT)
    road.edges = (-LANE / 2, 1.5 * LANE)
    return road


ROADS: dict[str, Callable[[np.random.Generator], Road]] = {
    "straight": straight,
    "curve": curve,
    "t_junction": t_junction,
    "junction": junction,
    "blocked": blocked,
    "merge": merge,
}


def _parallel(road: Road, offsets: list[float], own: int) -> None:
    order = sorted(offsets, key=abs)
    for lane, offset in enumerate(order):
        road.strip((-BACK, offset, 0.0), BACK + AHEAD, lane=lane)
        road.paths.append(trace([(BACK + AHEAD, 0.0)], (-BACK, offset, 0.0)))
    road.edges = (min(offsets) - LANE / 2, max(offsets) + LANE / 2)


def _arc(x: float, y: float, heading: float, s: np.ndarray, curvature: float) -> np.ndarray:
    found = np.empty((len(s), 2))
    if curvature == 0.0:
        found[:, 0], found[:, 1] = x + s * np.cos(heading), y + s * np.sin(heading)
        return found
    turned = heading + curvature * s
    found[:, 0] = x + (np.sin(turned) - np.sin(heading)) / curvature
    found[:, 1] = y - (np.cos(turned) - np.cos(heading)) / curvature
    return found
