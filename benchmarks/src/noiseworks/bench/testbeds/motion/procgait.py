"""`procgait`: clips of walking, turning, standing, sitting down, standing up and lying down from numbers.

Walking is planned from the feet: steps are placed along a curved path, a standing foot does not move (its ball does not
while the heel rises), the other foot swings, the pelvis follows the path, and both legs follow by two-bone inverse
kinematics. Arms and trunk swing with the steps along three harmonics. Whoever sits or lies moves along minimum-jerk
curves. z is up; each clip is in the local frame of its first pose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.kits.motion import ProcBody, local_frame
from noiseworks.kits.motion.body import ANKLE, BALL, COUNT, HIP, OFFSETS, SHIN, SOLE, THIGH
from noiseworks.kits.motion.rotations import (
    continuous,
    matrices_of,
    power_blend,
    quaternions_of_matrices,
    vectors_of,
)
from torch import Tensor

FPS, FRAMES = 20, 80
KINDS = ("walk", "turn", "stand", "sit", "stand_up", "lie")
SHARES = (0.5, 0.1, 0.05, 0.2, 0.05, 0.1)
ACTIONS = ("walk", "sit", "lie")
ACTION_OF = (0, 0, 0, 1, 1, 2)  # of the kinds
SEAT = (0.35, 0.55)  # heights of seats, metres
OVER_SEAT, OVER_BED = 0.17, 0.13  # of the pelvis, sitting and lying
DOUBLE = 0.2  # share of a step in which both feet stand
LEG = THIGH + SHIN
STEP_WIDTH, LIFT, PITCH = (
    0.09,
    0.09,
    0.6,
)  # half distance of the feet, height of a swing, angle of a rising heel
# From the rest pose's axes (x left, y up, z ahead) to a body that stands and looks along +y.
STANDING = np.array(((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)))


@dataclass(frozen=True)
class Clips:
    """Motions.

    Attributes:
        motion: [N, 80, 69], each in the local frame of its first pose; the floor lies `pelvis` below the origin.
        kinds: Index in `KINDS`, [N].
        actions: Index in `ACTIONS`, [N].
        pelvis: Height of the pelvis in the first pose, metres, [N].
    """

    motion: Tensor
    kinds: Tensor
    actions: Tensor
    pelvis: Tensor

    def __len__(self) -> int:
        return len(self.motion)


def draw_clips(
    seed: int, count: int, *, start: int = 0, kinds: Sequence[str] = KINDS, frames: int = FRAMES
) -> Clips:
    """Return clips `start` to `start + count` of a seed; each is a function of (seed, index).

    Args:
        seed: Of the set.
        count: Number of clips.
        start: Index of the first one.
        kinds: Which occur.
        frames: Length of each.

    Raises:
        InputError: When a kind is unknown.
    """
    check_number("seed", seed, low=0, integer=True)
    check_number("count", count, low=1, integer=True)
    for kind in kinds:
        check_choice("kind", kind, KINDS)
    shares = np.array([SHARES[KINDS.index(kind)] for kind in kinds])
    chosen, found = [], []
    for index in range(start, start + count):
        rng = np.random.default_rng((seed, index))
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        chosen.append(KINDS.index(kind))
        found.append(MAKERS[kind](rng, frames))
    rotations, places = (torch.as_tensor(np.stack(part)) for part in zip(*found, strict=True))
    motion = torch.cat(
        (
            _first_near(quaternions_of_matrices(rotations)).flatten(-2),
            places - torch.tensor(OFFSETS[0], dtype=torch.float64),
        ),
        -1,
    )
    body = ProcBody().double()
    joints, _ = body(motion[:, :1])
    frame = local_frame(joints[:, 0])
    local = frame.motion_to_local(motion, body.root)
    kept = torch.tensor(chosen)
    return Clips(local.float(), kept, torch.tensor(ACTION_OF)[kept], frame.origin[:, 2].float())


def _first_near(quaternions: Tensor) -> Tensor:
    """Return vectors [N, F, 22, 3] that do not jump, of quaternions [N, F, 22, 4]."""
    along = quaternions.transpose(1, 2)
    return vectors_of(continuous(along, along.new_tensor((1.0, 0.0, 0.0, 0.0)))).transpose(1, 2)


# --- angles and legs ---


def about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Return rotations about an axis, [..., 3, 3]."""
    cosine, sine, one, zero = np.cos(angle), np.sin(angle), np.ones_like(angle), np.zeros_like(angle)
    rows = {
        0: ((one, zero, zero), (zero, cosine, -sine), (zero, sine, cosine)),
        1: ((cosine, zero, sine), (zero, one, zero), (-sine, zero, cosine)),
        2: ((cosine, -sine, zero), (sine, cosine, zero), (zero, zero, one)),
    }[axis]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def heading(angle: np.ndarray) -> np.ndarray:
    """Return orientations of a body upright that looks `angle` to the left of +y, [..., 3, 3]."""
    return about(2, angle) @ STANDING


def smooth(share: np.ndarray) -> np.ndarray:
    """Return the minimum-jerk curve from 0 to 1 at shares of its time, flat before and after."""
    s = np.clip(share, 0, 1)
    return s**3 * (10 - 15 * s + 6 * s**2)


def solve_legs(
    pelvis: np.ndarray, trunk: np.ndarray, ankles: np.ndarray, ahead: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return global rotations of both thighs and shins that put the ankles where they shall be, [F, 2, 3, 3] each.

    Args:
        pelvis: [F, 3].
        trunk: Global rotation of the pelvis, [F, 3, 3].
        ankles: Left and right, [F, 2, 3].
        ahead: Where the knees point, [F, 2, 3].
    """
    offsets = np.array((OFFSETS[1], OFFSETS[2]))
    hips = pelvis[:, None] + np.einsum("fij,sj->fsi", trunk, offsets)
    reach = ankles - hips
    length = np.linalg.norm(reach, axis=-1, keepdims=True)
    down = reach / length
    half = np.minimum(length / 2, THIGH - 1e-9)
    side = ahead - (ahead * down).sum(-1, keepdims=True) * down
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    knees = hips + half * down + np.sqrt(THIGH**2 - half**2) * side
    left = np.cross(-down, side)

    def bone(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        up = (above - below) / np.linalg.norm(above - below, axis=-1, keepdims=True)
        return np.stack((left, up, np.cross(left, up)), -1)

    return bone(hips, knees), bone(knees, ankles)


def assemble(
    trunk: np.ndarray,
    legs: tuple[np.ndarray, np.ndarray],
    feet: np.ndarray,
    toes: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Return local rotations [F, 22, 3, 3].

    Args:
        trunk: Global rotation of the pelvis, [F, 3, 3].
        legs: Global rotations of thighs and shins, [F, 2, 3, 3].
        feet: Global rotations of the feet, [F, 2, 3, 3].
        toes: Angles of the toes against the foot, [F, 2].
        upper: Local rotation vectors of the other joints, [F, 22, 3]; those of the legs are not read.
    """
    thighs, shins = legs
    found = matrices_of(torch.as_tensor(upper)).numpy()
    found[:, 0] = trunk
    for side in (0, 1):
        found[:, 1 + side] = trunk.mT @ thighs[:, side]
        found[:, 4 + side] = thighs[:, side].mT @ shins[:, side]
        found[:, 7 + side] = shins[:, side].mT @ feet[:, side]
        found[:, 10 + side] = about(0, toes[:, side])
    return found


def arms_down(frames: int, swing: np.ndarray, elbow: float) -> np.ndarray:
    """Return local rotation vectors [F, 22, 3] with hanging arms that swing.

    Args:
        frames: F.
        swing: Angle ahead of the left arm, [F]; the right one swings the other way.
        elbow: How far the elbows are bent.
    """
    upper = np.zeros((frames, COUNT, 3))
    for joint, sign in ((16, 1.0), (17, -1.0)):
        hang = np.broadcast_to(about(2, np.array(-sign * 1.3)), (frames, 3, 3))
        turned = torch.as_tensor(about(0, -sign * swing) @ hang)
        upper[:, joint] = _first_near(quaternions_of_matrices(turned)[None, :, None])[0, :, 0].numpy()
        upper[:, joint + 2, 1] = -sign * elbow
    return upper


# --- walking ---


@dataclass(frozen=True)
class Gait:
    """The numbers of one walk.

    Attributes:
        speed: Metres a second, at each point of the fine grid, [T].
        turn: Radians a second there, [T].
        cadence: Steps a second.
        phase: Steps that were done at time 0.
        style: Swing of the arms, bent elbows, lean, lift, bob, sway, and six numbers of the harmonics, [12].
    """

    speed: np.ndarray
    turn: np.ndarray
    cadence: float
    phase: float
    style: np.ndarray


FINE, BEFORE, AFTER = 100, 3.0, 3.0  # points a second of the path, seconds before and after the clip


def walk(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a walk: local rotations [F, 22, 3, 3] and pelvis [F, 3]. A quarter of them start or stop on the way."""
    times = np.arange(int((BEFORE + AFTER + frames / FPS) * FINE)) / FINE - BEFORE
    stride, cadence = rng.uniform(0.5, 0.8), rng.uniform(1.6, 2.0)
    bend, wave, start = rng.uniform(-0.6, 0.6), rng.uniform(-0.3, 0.3), rng.uniform(0, 2 * np.pi)
    speed = np.full(len(times), stride * cadence)
    change = rng.random()
    if change < 0.25:
        middle = rng.uniform(0.5, frames / FPS - 0.5)
        ramp = smooth((times - middle + 0.6) / 1.2)
        speed *= ramp if change < 0.12 else 1 - ramp
    turn = bend + wave * np.sin(2 * np.pi * 0.25 * times + start)
    return pace(Gait(speed, turn, cadence, rng.uniform(0, 2), rng.uniform(-1, 1, 12)), frames)


def turn(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a turn on the spot or nearly so; the arguments and results are those of `walk`."""
    times = np.arange(int((BEFORE + AFTER + frames / FPS) * FINE)) / FINE - BEFORE
    speed = np.full(len(times), rng.uniform(0, 0.3))
    rate = np.full(len(times), rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 1.1))
    return pace(Gait(speed, rate, rng.uniform(1.6, 2.0), rng.uniform(0, 2), rng.uniform(-1, 1, 12)), frames)


def pace(gait: Gait, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion of a gait: local rotations [F, 22, 3, 3] and pelvis [F, 3]."""
    angle = np.cumsum(gait.turn) / FINE
    path = np.cumsum(gait.speed[:, None] * np.stack((-np.sin(angle), np.cos(angle)), -1), axis=0) / FINE

    def at(times: np.ndarray, what: np.ndarray) -> np.ndarray:
        place = np.clip((times + BEFORE) * FINE, 0, len(what) - 1.001)
        low = place.astype(int)
        share = (place - low)[(...,) + (None,) * (what.ndim - 1)]
        return (1 - share) * what[low] + share * what[low + 1]

    t = np.arange(frames) / FPS
    phi = gait.cadence * t + gait.phase
    pelvis_xy, psi, pace_now = at(t, path), at(t, angle), at(t, gait.speed)
    balls, turns, pitch = np.zeros((frames, 2, 3)), np.zeros((frames, 2)), np.zeros((frames, 2))
    toes = np.zeros((frames, 2))
    stand = 1 + DOUBLE
    for side in (0, 1):
        step = 2 * np.floor((phi - side) / 2) + side
        share = phi - step

        def print_of(step: np.ndarray, side: int = side) -> tuple[np.ndarray, np.ndarray]:
            # A foot lands where the body will be in the middle of its stand.
            when = (step + stand / 2 - gait.phase) / gait.cadence
            place, way = at(when, path), at(when, angle)
            left = np.stack((-np.cos(way), -np.sin(way)), -1)
            ahead = np.stack((-np.sin(way), np.cos(way)), -1)
            return place + (STEP_WIDTH if side == 0 else -STEP_WIDTH) * left + BALL * ahead, way

        now, here = print_of(step)
        then, there = print_of(step + 2)
        swing = np.clip((share - stand) / (2 - stand), 0, 1)
        moved = smooth(swing)
        lift = LIFT * (1 + 0.3 * gait.style[3])
        balls[:, side, :2] = now + moved[:, None] * (then - now)
        balls[:, side, 2] = SOLE + lift * 16 * (swing * (1 - swing)) ** 2
        turns[:, side] = here + moved * (there - here)
        heel = PITCH * np.clip(pace_now / 1.2, 0.1, 1.0)
        rising = smooth((share - 0.6) / (stand - 0.6))
        pitch[:, side] = heel * np.where(share < stand, rising, 1 - moved)
        toes[:, side] = -pitch[:, side] * np.where(share < stand, 1.0, 1 - moved)
    feet = heading(turns) @ about(0, pitch)
    ankles = balls - feet @ np.array((0.0, SOLE - ANKLE, BALL))
    lean = 0.04 + 0.04 * gait.style[2]
    sway = (0.015 + 0.01 * gait.style[5]) * np.sin(np.pi * (phi - DOUBLE / 2))
    left = np.stack((-np.cos(psi), -np.sin(psi)), -1)
    xy = pelvis_xy + sway[:, None] * left
    waves = [np.sin(np.pi * k * phi + gait.style[6 + k]) for k in (1, 2, 3)]
    twist = 0.06 * np.sin(np.pi * phi) + 0.01 * gait.style[10] * waves[2]
    trunk = heading(psi + twist) @ about(0, np.full(frames, lean))
    # As high as both legs reach in every frame, less a little, with a bob below it.
    hips = np.einsum("fij,sj->fsi", trunk, np.array((OFFSETS[1], OFFSETS[2])))
    flat = np.linalg.norm(ankles[..., :2] - xy[:, None] - hips[..., :2], axis=-1)
    most = (ankles[..., 2] - hips[..., 2] + np.sqrt(np.clip((0.985 * LEG) ** 2 - flat**2, 0.05, None))).min()
    bob = 0.012 + 0.006 * gait.style[4]
    height = np.minimum(most, 0.96) - bob * (1 - np.cos(2 * np.pi * (phi - DOUBLE / 2)))
    pelvis = np.column_stack((xy, height))
    ahead = np.stack((-np.sin(turns), np.cos(turns), np.zeros_like(turns)), -1)
    legs = solve_legs(pelvis, trunk, ankles, ahead)
    effort = np.clip(pace_now / 1.2, 0.15, 1.0)
    swing = (
        effort
        * (0.35 + 0.15 * gait.style[0])
        * (np.sin(np.pi * phi) + 0.08 * gait.style[7] * waves[1] + 0.05 * gait.style[8] * waves[2])
    )
    upper = arms_down(frames, swing, 0.35 + 0.2 * gait.style[1])
    upper[:, (3, 6, 9), 1] = -twist[:, None] / 2
    upper[:, 3, 0] = 0.02 * waves[1]
    upper[:, 15, 0] = -lean
    return assemble(trunk, legs, feet, toes, upper), pelvis


# --- standing, sitting, lying ---


def stand(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standing with a little sway; the results are those of `walk`."""
    t = np.arange(frames) / FPS
    sway = 0.02 * rng.uniform(0.3, 1) * np.sin(2 * np.pi * rng.uniform(0.2, 0.5) * t + rng.uniform(0, 6))
    pelvis = np.column_stack((sway, 0.5 * sway, np.full(frames, 0.93)))
    return rest_on_feet(pelvis, np.zeros(frames), 0.1 * sway, 0.3 + 0.2 * rng.random())


def rest_on_feet(
    pelvis: np.ndarray, lean: np.ndarray, swing: np.ndarray, elbow: float, legs_ahead: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a motion whose feet stand still under the origin, looking along +y.

    Args:
        pelvis: [F, 3].
        lean: Angle ahead of the trunk, [F].
        swing: Angle ahead of the arms, [F].
        elbow: How far the elbows are bent.
        legs_ahead: How far the feet are ahead of the origin.
    """
    frames = len(pelvis)
    trunk = heading(np.zeros(frames)) @ about(0, lean)
    ankles = np.zeros((frames, 2, 3))
    ankles[:, :, 0], ankles[:, :, 1], ankles[:, :, 2] = (-HIP[0], HIP[0]), legs_ahead, ANKLE
    feet = heading(np.zeros((frames, 2)))
    ahead = np.broadcast_to((0.0, 1.0, 0.0), (frames, 2, 3))
    legs = solve_legs(pelvis, trunk, ankles, ahead)
    upper = arms_down(frames, np.zeros(frames), elbow)
    for joint, sign in ((16, 1.0), (17, -1.0)):
        turned = about(0, -swing) @ about(2, np.full(frames, -sign * 1.3))
        upper[:, joint] = _first_near(quaternions_of_matrices(torch.as_tensor(turned))[None, :, None])[
            0, :, 0
        ].numpy()
    upper[:, 15, 0] = -0.7 * lean
    return assemble(trunk, legs, feet, np.zeros((frames, 2)), upper), pelvis


@dataclass(frozen=True)
class Seating:
    """The numbers of sitting down.

    Attributes:
        height: Of the seat, metres.
        back: How far the pelvis goes back, metres.
        begin: Seconds before it begins.
        last: Seconds that it takes.
        bow: How far the trunk leans on the way.
        elbow: How far the elbows are bent.
    """

    height: float
    back: float
    begin: float
    last: float
    bow: float
    elbow: float


def draw_seating(rng: np.random.Generator) -> Seating:
    """Return how somebody sits down."""
    low, high = SEAT
    numbers = (rng.uniform(low, high), rng.uniform(0.36, 0.46), rng.uniform(0.5, 1.2), rng.uniform(1.3, 2.2))
    return Seating(*numbers, rng.uniform(0.4, 0.7), rng.uniform(0.2, 0.5))


def sit(
    rng: np.random.Generator, frames: int, seating: Seating | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return sitting down on a seat behind; the results are those of `walk`."""
    how = seating or draw_seating(rng)
    share = (np.arange(frames) / FPS - how.begin) / how.last
    done, bent = smooth(share), 16 * (np.clip(share, 0, 1) * (1 - np.clip(share, 0, 1))) ** 2
    # Going back comes before going down.
    gone = smooth(share * 1.15)
    pelvis = np.column_stack(
        (np.zeros(frames), -how.back * gone, 0.93 - (0.93 - how.height - OVER_SEAT) * done)
    )
    return rest_on_feet(pelvis, how.bow * bent + 0.05 * done, 0.5 * bent + 0.45 * done, how.elbow)


def stand_up(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standing up: sitting down, backwards."""
    rotations, pelvis = sit(rng, frames)
    return rotations[::-1].copy(), pelvis[::-1].copy()


def lie(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lying back on a bed from sitting on its edge; the results are those of `walk`."""
    how = draw_seating(rng)
    seated, place = sit(rng, frames, Seating(how.height, how.back, -9.0, 1.0, how.bow, how.elbow))
    share = (np.arange(frames) / FPS - how.begin) / (how.last + 0.4)
    done, legs = smooth(share), smooth(share * 1.2 - 0.2)
    trunk = heading(np.zeros(frames)) @ about(0, 0.05 - (np.pi / 2 + 0.05) * done)
    flat = np.broadcast_to(np.eye(3), seated.shape).copy()
    upper = arms_down(frames, np.zeros(frames), 0.2)
    flat[:, 16:20] = assemble(trunk, (flat[:, :2], flat[:, :2]), flat[:, :2], np.zeros((frames, 2)), upper)[
        :, 16:20
    ]
    start, end = (quaternions_of_matrices(torch.as_tensor(part)) for part in (seated, flat))
    weights = torch.as_tensor(np.repeat(legs[:, None], COUNT, 1))
    rotations = matrices_of(vectors_of(power_blend(start, end, weights))).numpy()
    rotations[:, 0] = trunk
    pelvis = place.copy()
    pelvis[:, 1] -= (0.55 + 0.1 * rng.random()) * done
    pelvis[:, 2] += (OVER_BED - OVER_SEAT) * done
    return rotations, pelvis


MAKERS = {"walk": walk, "turn": turn, "stand": stand, "sit": sit, "stand_up": stand_up, "lie": lie}
