"""Driving a plan: interpolation, a linear-quadratic tracker and a kinematic bicycle, as in nuPlan.

A plan of 8 poses, 0.5 s apart, becomes 41 poses at 0.1 s. From them the tracker fits profiles of speed and
curvature, looks ten steps ahead, and steers a bicycle model, which is what is scored: a plan that no vehicle could
follow is judged by where the vehicle ends up.
"""

from dataclasses import dataclass

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.driving.vehicle import WHEELBASE, wrap

STEP = 0.1  # seconds
POSES, SPACING = 8, 5  # of a plan; steps between two of its poses
STATES = POSES * SPACING + 1
LOOKAHEAD = 10  # steps
JERK_PENALTY, CURVATURE_RATE_PENALTY, CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
SPEED_WEIGHT, ACCELERATION_WEIGHT = 10.0, 1.0
LATERAL_WEIGHTS, STEERING_WEIGHT = (1.0, 10.0), 1.0  # of lateral and heading error; of the steering rate
STOPPING_SPEED, STOPPING_GAIN = 0.2, 0.5
ACCELERATION_LAG, STEERING_LAG = 0.2, 0.05  # seconds
LARGEST_STEERING = np.pi / 3


@dataclass(frozen=True)
class States:
    """What a driven vehicle does, at 0.1 s.

    Attributes:
        poses: Rear axle, [..., 41, 3]: metres and radians.
        speed: Metres a second, [..., 41].
        acceleration: Longitudinal, [..., 41].
    """

    poses: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray


def interpolate(plans: np.ndarray) -> np.ndarray:
    """Return poses [..., 41, 3] of plans [..., 8, 3] that start at the origin; headings take the short way.

    Raises:
        InputError: When the plans have another shape or hold NaN.
    """
    plans = np.asarray(plans, np.float64)
    if plans.shape[-2:] != (POSES, 3):
        raise InputError(f"plans must be [..., {POSES}, 3] (x, y, heading each 0.5 s), got {plans.shape}")
    if not np.isfinite(plans).all():
        raise InputError("the plans hold NaN or infinity")
    knots = np.concatenate((np.zeros_like(plans[..., :1, :]), plans), axis=-2)
    knots[..., 2] = np.unwrap(knots[..., 2], axis=-1)
    share = (np.arange(SPACING) / SPACING)[:, None]
    between = knots[..., :-1, None, :] * (1 - share) + knots[..., 1:, None, :] * share
    flat = between.reshape(*plans.shape[:-2], POSES * SPACING, 3)
    return np.concatenate((flat, knots[..., -1:, :]), axis=-2)


def speed_profile(poses: np.ndarray) -> np.ndarray:
    """Return speeds [N, K] whose straight steps explain the displacements of poses [N, K + 1, 3].

    The unknowns v_0, a_0, ... a_{K-2} minimise the squared errors of dt v_k (cos h_k, sin h_k) plus 1e-4 times
    a_0^2 + ... + a_{K-4}^2 + (a_{K-2} - a_{K-3})^2. Differences throughout were meant, but the released difference
    matrix loses its ones to a second assignment; published scores rest on it, so it is kept.
    """
    moves, heading = np.diff(poses[..., :2], axis=1), poses[:, :-1, 2]
    count = moves.shape[1]
    lower = STEP * np.concatenate((np.full((count, 1), 1.0), STEP * np.tri(count, count - 1, -1)), axis=1)
    # The direction has length 1, so A^T A does not depend on the headings, and one factor serves all plans.
    direction = np.stack((np.cos(heading), np.sin(heading)), axis=-1)
    penalised = -np.eye(count)[1:-1]
    penalised[-1, -1] = 1.0
    normal = lower.T @ lower + JERK_PENALTY * penalised.T @ penalised
    along = (moves * direction).sum(axis=-1)
    return along @ lower @ np.linalg.inv(normal) @ (lower.T / STEP)


def curvature_profile(poses: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """Return curvatures [N, K] that explain the turns of poses [N, K + 1, 3] driven at speeds [N, K].

    The unknowns k_0 and its rates r minimise the squared errors of dt v_k k_k plus 1e-10 k_0^2 plus 1e-2 times the
    squared rates. In the curvatures themselves, r_k = (k_{k+1} - k_k) / dt, so the normal equations are
    tridiagonal and one elimination solves all plans.
    """
    turns = wrap(np.diff(poses[..., 2], axis=1))
    count, weight = turns.shape[1], CURVATURE_RATE_PENALTY / STEP**2
    coupling = np.full(count, 2 * weight)
    coupling[[0, -1]] = weight
    diagonal = (STEP * speed) ** 2 + coupling
    diagonal[:, 0] += CURVATURE_PENALTY
    right = STEP * speed * turns
    for k in range(1, count):
        factor = weight / diagonal[:, k - 1]
        diagonal[:, k] -= weight * factor
        right[:, k] += factor * right[:, k - 1]
    found = np.empty_like(right)
    found[:, -1] = right[:, -1] / diagonal[:, -1]
    for k in range(count - 2, -1, -1):
        found[:, k] = (right[:, k] + weight * found[:, k + 1]) / diagonal[:, k]
    return found


def rollout(plans: np.ndarray, speed: np.ndarray, acceleration: np.ndarray) -> States:
    """Return what the vehicle does that is told to drive plans.

    Args:
        plans: Poses relative to the ego at the start, [..., 8, 3].
        speed: At the start, broadcasts to [...].
        acceleration: At the start, likewise.

    Raises:
        InputError: When the plans have another shape or hold NaN.
    """
    return track(interpolate(plans), speed, acceleration)


def track(poses: np.ndarray, speed: np.ndarray, acceleration: np.ndarray) -> States:
    """Return what the vehicle does that follows poses [..., K + 1, 3] at 0.1 s, starting at the first one."""
    shape = poses.shape[:-2]
    reference = poses.reshape(-1, *poses.shape[-2:])
    count = reference.shape[1] - 1
    speeds = speed_profile(reference)
    curvatures = curvature_profile(reference, speeds)
    # In the loop a row of all plans is read at a time.
    speeds, curvatures = np.ascontiguousarray(speeds.T), np.ascontiguousarray(curvatures.T)
    places = np.ascontiguousarray(np.moveaxis(reference, 0, -1))
    x, y, heading = places[0]
    v = np.broadcast_to(speed, shape).reshape(-1).astype(np.float64)
    a = np.broadcast_to(acceleration, shape).reshape(-1).astype(np.float64)
    steering = np.zeros_like(v)
    kept = [(x, y, heading, v, a)]
    for k in range(count):
        command, rate = _commands(k, (x, y, heading), v, steering, places[k], speeds, curvatures)
        a = a + STEP / (STEP + ACCELERATION_LAG) * (command - a)
        wanted = steering + STEP * rate
        turned = steering + STEP / (STEP + STEERING_LAG) * (wanted - steering)
        turned = np.clip(turned, -LARGEST_STEERING, LARGEST_STEERING)
        forward = STEP * v
        x, y = x + forward * np.cos(heading), y + forward * np.sin(heading)
        heading = heading + forward * (np.tan(steering) / WHEELBASE)
        v, steering = v + STEP * a, turned
        kept.append((x, y, heading, v, a))
    x, y, heading, v, a = (np.stack(part, axis=-1).reshape(*shape, -1) for part in zip(*kept, strict=True))
    return States(np.stack((x, y, wrap(heading)), axis=-1), v, a)


def _commands(
    k: int,
    pose: tuple[np.ndarray, np.ndarray, np.ndarray],
    v: np.ndarray,
    steering: np.ndarray,
    place: np.ndarray,
    speeds: np.ndarray,
    curvatures: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the acceleration and the steering rate, [N] each, that hold the reference for the next second.

    Args:
        k: Step.
        pose: Where the vehicles are, x, y and heading, [N] each.
        v: Their speeds, [N].
        steering: Their steering angles, [N].
        place: Where they should be, [3, N].
        speeds: Profiles, [K, N].
        curvatures: Profiles, [K, N].
    """
    last = len(speeds) - 1
    goal = speeds[min(k + LOOKAHEAD, last)]
    horizon = LOOKAHEAD * STEP
    command = SPEED_WEIGHT * horizon * (goal - v) / (SPEED_WEIGHT * horizon**2 + ACCELERATION_WEIGHT)
    stopping = (v <= STOPPING_SPEED) & (goal <= STOPPING_SPEED)
    command = np.where(stopping, -STOPPING_GAIN * (v - goal), command)
    (dx, dy, turned), heading = (one - other for one, other in zip(pose, place, strict=True)), place[2]
    lateral = dy * np.cos(heading) - dx * np.sin(heading)
    turned = wrap(turned)
    # State (lateral error, heading error, steering) after ten steps: free + gain u, for one steering rate u. Each step
    # adds metres ahead times what the heading error was before it, and metres ahead times a curvature to the latter.
    times = STEP * np.arange(LOOKAHEAD)[:, None]
    ahead = STEP * (v + times * command)
    curves = curvatures[np.minimum(k + np.arange(LOOKAHEAD), last)]
    turns = np.cumsum(ahead * (steering / WHEELBASE - curves), axis=0)
    gains = np.cumsum(ahead * times / WHEELBASE, axis=0)
    free = (
        lateral + ahead.sum(axis=0) * turned + (ahead[1:] * turns[:-1]).sum(axis=0),
        wrap(turned + turns[-1]),
    )
    gain = (ahead[1:] * gains[:-1]).sum(axis=0), gains[-1]
    top = sum(q * g * f for q, g, f in zip(LATERAL_WEIGHTS, gain, free, strict=True))
    bottom = sum(q * g * g for q, g in zip(LATERAL_WEIGHTS, gain, strict=True)) + STEERING_WEIGHT
    return command, np.where(stopping, 0.0, -top / bottom)
