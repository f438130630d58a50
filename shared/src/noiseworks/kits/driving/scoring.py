"""The PDM score of NAVSIM, version 1: what a driven plan is worth, from 0 to 1.

    PDMS = NC DAC (5 TTC + 5 EP + 2 C) / 12

All proposals of all scenes are judged together. Two boxes can only touch when their centres are near, so the
separating-axis test runs on the few pairs that are.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.driving.scenes import NOTHING, PADDING, STATIC, Scenes, may_hold, on_strips, project
from noiseworks.kits.driving.tracking import POSES, STATES, STEP, States, rollout
from noiseworks.kits.driving.vehicle import (
    LENGTH,
    WIDTH,
    bodies,
    bumpers,
    centres,
    corners,
    ego_boxes,
    overlap,
    wrap,
)
from scipy.signal import savgol_filter

TERMS = ("no_collision", "drivable_area", "progress", "time_to_collision", "comfort")
STOPPED, BARELY_MOVING = 0.05, 0.005  # m/s: an ego or object that stands; an ego without a time to collision
AHEAD, BEHIND = np.deg2rad(30), np.deg2rad(150)
LOOKED_AHEAD = (0, 3, 6, 9)  # steps
WORTH_PROGRESS = 5.0  # metres; where nobody gets further, progress is not judged
ACCELERATION = (-4.05, 2.40)
JERK, LONGITUDINAL_JERK, YAW_RATE, YAW_ACCELERATION = 8.37, 4.13, 0.95, 1.93


@dataclass(frozen=True)
class Scores:
    """The terms of plans, [B, P] each.

    Attributes:
        no_collision: NC: 1, 1/2 (at fault with a static object) or 0 (with a vehicle or pedestrian).
        drivable_area: DAC: 0 when a corner leaves the road at any time.
        progress: EP in [0, 1]: along the chosen route, relative to the best of plan and reference.
        time_to_collision: TTC: 0 when going straight on for a second would hit something ahead.
        comfort: C: 0 when accelerations, jerks or yaw rates are out of bounds.
        raw_progress: Metres along the route times NC DAC.
        score: PDMS.
    """

    no_collision: np.ndarray
    drivable_area: np.ndarray
    progress: np.ndarray
    time_to_collision: np.ndarray
    comfort: np.ndarray
    raw_progress: np.ndarray
    score: np.ndarray

    def means(self) -> dict[str, float]:
        """Return the mean of each term and of the score."""
        return {field.name: float(getattr(self, field.name).mean()) for field in fields(self)}


@dataclass(frozen=True)
class _Areas:
    off_road: np.ndarray
    multiple_lanes: np.ndarray
    in_junction: np.ndarray

    @property
    def astray(self) -> np.ndarray:
        return self.off_road | self.multiple_lanes


def combine(
    no_collision: np.ndarray, drivable: np.ndarray, ttc: np.ndarray, progress: np.ndarray, comfort: np.ndarray
) -> np.ndarray:
    """Return PDMS of its terms."""
    return no_collision * drivable * (5 * ttc + 5 * progress + 2 * comfort) / 12


def score_plans(plans: np.ndarray, scenes: Scenes, reference: np.ndarray | None = None) -> Scores:
    """Drive plans and score them.

    Args:
        plans: Poses each half second, [B, P, 8, 3].
        scenes: B scenes.
        reference: Metres of progress of a reference driver, [B]; by default the best of the scene's plans.

    Raises:
        InputError: When the plans are of another shape or not finite, or a scene has no drivable area.
    """
    scenes.check()
    plans = np.asarray(plans, np.float64)
    if plans.ndim != 4 or len(plans) != len(scenes):
        raise InputError(f"plans must be [{len(scenes)}, P, {POSES}, 3] for these scenes, got {plans.shape}")
    return score(rollout(plans, scenes.speed[:, None], scenes.acceleration[:, None]), scenes, reference)


def score(states: States, scenes: Scenes, reference: np.ndarray | None = None) -> Scores:
    """Score driven proposals [B, P, 41, ...]; see `score_plans`.

    Raises:
        InputError: When the states are not 4 seconds at 0.1 s: the score's horizon.
    """
    if states.poses.ndim != 4 or states.poses.shape[2] != STATES:
        raise InputError(
            f"the score judges {STATES} states at {STEP} s (4 seconds), got {states.poses.shape}"
        )
    met = _contacts(centres(states.poses), states.poses[..., 2], scenes)
    no_collision = collisions(states, scenes, met)
    drivable = 1.0 - is_off_road(states.poses, scenes).any(axis=-1)
    ttc, comfort = time_to_collision(states, scenes, met), is_comfortable(states).astype(np.float64)
    raw = progress_along(states.poses, scenes.route) * no_collision * drivable
    best = raw.max(axis=1) if reference is None else np.asarray(reference, np.float64)
    best = np.maximum(raw, best[:, None])
    near = (no_collision * drivable > 0).astype(np.float64)
    progress = np.where(best > WORTH_PROGRESS, raw / np.maximum(best, WORTH_PROGRESS), near)
    total = combine(no_collision, drivable, ttc, progress, comfort)
    return Scores(no_collision, drivable, progress, ttc, comfort, raw, total)


def is_off_road(poses: np.ndarray, scenes: Scenes) -> np.ndarray:
    """Return when a corner of the ego lies on no strip, bool [B, P, T] of poses [B, P, T, 3]."""
    shape = poses.shape[:3]
    # A row is a proposal's corners at all times; it is done once all lie on strips.
    scene = np.repeat(np.arange(shape[0]), shape[1])
    corner = corners(ego_boxes(poses)).reshape(len(scene), shape[2], 4, 2)
    points = np.ascontiguousarray(np.moveaxis(corner, (3, 2), (0, 2))).reshape(2, len(scene), -1)
    low, high = points.min(axis=-1).T, points.max(axis=-1).T
    near = may_hold(scenes.strips[scene], low, high) & (scenes.lanes[scene] != PADDING)
    held, done = np.zeros(points.shape[1:], bool), np.zeros(len(scene), bool)
    for strip in range(scenes.lanes.shape[1]):
        rows = np.flatnonzero(near[:, strip] & ~done)
        strips = scenes.strips[scene[rows], strip, None]
        found = held[rows] | on_strips(strips, np.moveaxis(points[:, rows], 0, -1))[:, 0]
        held[rows], done[rows] = found, found.all(axis=-1)
    return ~held.reshape(len(scene), 4, -1).all(axis=1).reshape(shape)


def find_areas(poses: np.ndarray, scene: np.ndarray, scenes: Scenes) -> _Areas:
    """Return where the ego is at poses [K, 3] in scenes `scene`, int [K]; bool [K] each.

    Off the road: a corner on no strip. In multiple lanes: more than one lane holds a corner, and none holds all four.
    """
    points = np.concatenate((corners(ego_boxes(poses)), poses[:, None, :2]), axis=1)
    lanes = scenes.lanes[scene]
    on = on_strips(scenes.strips[scene], points) & (lanes != PADDING)[..., None]
    # Which corners each lane holds; a lane may be of several strips.
    held = np.zeros((len(poses), int(scenes.lanes.max()) + 1, 4), bool)
    for strip, lane in enumerate(lanes.T):
        rows = np.flatnonzero(lane >= 0)
        held[rows, lane[rows]] |= on[rows, strip, :4]
    off = ~on[..., :4].any(axis=1).all(axis=-1)
    multiple = (held.any(axis=-1).sum(axis=1) > 1) & ~held.all(axis=-1).any(axis=1)
    return _Areas(off, multiple, (on[..., 4] & scenes.junction[scene]).any(axis=1))


def collisions(states: States, scenes: Scenes, met: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return NC, [B, P].

    An object that was hit without fault is ignored from then on, so its first contact decides: the ego's fault is
    an object that stands, one that the front bumper hits, or one at the side while the ego is between lanes or off
    the road; not an object from behind, and nothing while the ego itself stands.

    Args:
        states: Driven proposals.
        scenes: Their scenes.
        met: Contacts, from `_contacts`.
    """
    b, p, m, t = met
    found = np.ones(states.poses.shape[:2])
    if not len(b):
        return found
    b, p, m, t = _first(b, p, m, t, scenes.kinds.shape[1], found.shape[1])
    boxes = scenes.boxes_at(b, m, t)
    pose, speed = states.poses[b, p, t], states.speed[b, p, t]
    stands = (scenes.track_speeds[b, m, 0] <= STOPPED) | (scenes.kinds[b, m] == STATIC)
    behind = _angle(pose, boxes[:, :2]) > BEHIND
    front = overlap(bumpers(pose), boxes)
    fault = stands | (~behind & (front | find_areas(pose, b, scenes).astray))
    fault &= speed > STOPPED
    worth = np.where(scenes.kinds[b, m] == STATIC, 0.5, 0.0)
    np.minimum.at(found, (b[fault], p[fault]), worth[fault])
    return found


def time_to_collision(states: States, scenes: Scenes, met: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return TTC, [B, P].

    At each time the ego is moved straight on for 0, 0.3, 0.6 and 0.9 s and compared with where the objects are
    then. An object's first contact decides: it counts when it is ahead, or not behind while the ego is
    between lanes, off the road or in a junction; else it is ignored from then on.

    Args:
        states: Driven proposals.
        scenes: Their scenes.
        met: Contacts at 0 s, from `_contacts`.
    """
    centre, heading = centres(states.poses), states.poses[..., 2]
    ahead = np.stack((np.cos(heading), np.sin(heading)), axis=-1) * states.speed[..., None]
    parts = []
    for order, later in enumerate(LOOKED_AHEAD):
        moved = centre + ahead * (later * STEP)
        b, p, m, t = _contacts(moved, heading, scenes, later) if later else met
        parts.append((b, p, m, t * len(LOOKED_AHEAD) + order))
    b, p, m, when = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = np.ones(states.poses.shape[:2])
    moving = states.speed[b, p, when // len(LOOKED_AHEAD)] >= BARELY_MOVING
    b, p, m, when = b[moving], p[moving], m[moving], when[moving]
    if not len(b):
        return found
    b, p, m, when = _first(b, p, m, when, scenes.kinds.shape[1], found.shape[1])
    t, later = when // len(LOOKED_AHEAD), np.array(LOOKED_AHEAD)[when % len(LOOKED_AHEAD)]
    pose = states.poses[b, p, t]
    angle, areas = _angle(pose, scenes.tracks[b, m, t + later, :2]), find_areas(pose, b, scenes)
    risky = areas.astray | areas.in_junction
    counts = (angle < AHEAD) | (risky & (angle <= BEHIND))
    found[b[counts], p[counts]] = 0.0
    return found


def progress_along(poses: np.ndarray, routes: np.ndarray) -> np.ndarray:
    """Return the metres that the ego's centre moves along the route, [B, P], at least 0.

    Args:
        poses: [B, P, 41, 3].
        routes: [B, K, 2].
    """
    ends = centres(poses[:, :, [0, -1]])
    along = project(routes, ends.reshape(len(poses), -1, 2))[0].reshape(*poses.shape[:2], 2)
    return np.maximum(along[..., 1] - along[..., 0], 0)


def is_comfortable(states: States) -> np.ndarray:
    """Return C, bool [...]: smoothed accelerations, jerks and yaw rates of states [..., 41] strictly within bounds.

    The lateral acceleration at the rear axle is 0 in this version of the score, so its bound cannot be reached.
    """
    whole = states.acceleration.shape[-1]
    acceleration = _smooth(states.acceleration, whole, 2)
    jerk = _smooth(_smooth(states.acceleration, 8, 2), whole, 2, 1)
    jerk_of_size = _smooth(_smooth(np.abs(states.acceleration), 8, 2), whole, 2, 1)
    heading = np.unwrap(states.poses[..., 2], axis=-1)
    yaw_rate, yaw_acceleration = _smooth(heading, 5, 2, 1), _smooth(heading, 5, 3, 2)
    low, high = ACCELERATION
    return (
        ((acceleration > low) & (acceleration < high)).all(axis=-1)
        & (np.abs(jerk_of_size) < JERK).all(axis=-1)
        & (np.abs(jerk) < LONGITUDINAL_JERK).all(axis=-1)
        & (np.abs(yaw_acceleration) < YAW_ACCELERATION).all(axis=-1)
        & (np.abs(yaw_rate) < YAW_RATE).all(axis=-1)
    )


def _smooth(values: np.ndarray, window: int, order: int, derivative: int = 0) -> np.ndarray:
    found = values @ _filter(values.shape[-1], window, order, derivative)
    return np.round(found, 8)  # so that a bound that is met exactly is not passed by rounding


@cache
def _filter(count: int, window: int, order: int, derivative: int) -> np.ndarray:
    """Return scipy's Savitzky-Golay filter, which is linear, as a matrix: row j is what value j of `count` gives."""
    return savgol_filter(np.eye(count), window, order, deriv=derivative, delta=STEP, axis=-1)


def _angle(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the angle between headings of rear-axle poses [K, 3] and the directions of points [K, 2]."""
    direction = np.arctan2(points[:, 1] - pose[:, 1], points[:, 0] - pose[:, 0])
    return np.abs(wrap(direction - pose[:, 2]))


def _contacts(ego: np.ndarray, heading: np.ndarray, scenes: Scenes, later: int = 0) -> tuple[np.ndarray, ...]:
    """Return indices (scene, proposal, object, time) of where the ego's body meets objects.

    Args:
        ego: The body's centres, [B, P, 41, 2].
        heading: Its headings, [B, P, 41].
        scenes: The scenes.
        later: Steps by which the objects are ahead of the ego.
    """
    tracks = scenes.tracks[:, :, later : later + STATES, :2]
    reach = np.hypot(LENGTH, WIDTH) / 2 + np.hypot(scenes.sizes[..., 0], scenes.sizes[..., 1]) / 2
    # First the objects and times that are near any proposal at all.
    near = np.broadcast_to(scenes.kinds[..., None] != NOTHING, tracks.shape[:3]).copy()
    for axis in (0, 1):
        here, there, room = ego[..., axis], tracks[..., axis], reach[..., None]
        near &= there >= here.min(axis=1)[:, None] - room
        near &= there <= here.max(axis=1)[:, None] + room
    scene, item, when = np.nonzero(near)
    ways = np.ascontiguousarray(ego.transpose(3, 0, 2, 1))
    x, y = tracks[scene, item, when].T[..., None]
    apart = (ways[0, scene, when] - x) ** 2 + (ways[1, scene, when] - y) ** 2
    row, p = np.nonzero(apart <= reach[scene, item, None] ** 2)
    b, m, t = scene[row], item[row], when[row]
    hit = overlap(bodies(ego[b, p, t], heading[b, p, t]), scenes.boxes_at(b, m, t + later))
    return b[hit], p[hit], m[hit], t[hit]


def _first(
    b: np.ndarray, p: np.ndarray, m: np.ndarray, when: np.ndarray, objects: int, proposals: int
) -> tuple[np.ndarray, ...]:
    """Return the earliest contact of each (scene, proposal, object)."""
    order = np.argsort(when, kind="stable")
    key = ((b * proposals + p) * objects + m)[order]
    _, index = np.unique(key, return_index=True)
    chosen = order[index]
    return b[chosen], p[chosen], m[chosen], when[chosen]
