"""Figures of recorded paths: on which side of the straight line a path goes, and how often it changes."""

import numpy as np
from noiseworks.bench.testbeds.tabletop.simulation import ACTION_DIM, SPEED

# Bows smaller than this are noise: the action noise moves the gripper by about 0.006 a step.
MIN_BOW = 0.03


def mode_switches(positions: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Count how often an approach turns from one side to the other.

    A path up to the first closing of the gripper is compared with the line from its start to its end. The side
    counts where the path is at least 0.03 from the line.

    Args:
        positions: Gripper positions before each action, [E, S, 2], NaN after an episode's end.
        actions: Actions, [E, S, 3], likewise.

    Returns:
        int64 [E].
    """
    counts = np.zeros(len(positions), np.int64)
    for row, (path, taken) in enumerate(zip(positions, actions, strict=True)):
        length = int(np.isfinite(taken[:, 0]).sum())
        closing = np.flatnonzero(taken[:length, 2] > 0)
        path = path[: closing[0] + 1 if len(closing) else length].astype(np.float64)
        line = path[-1] - path[0]
        norm = np.sqrt((line**2).sum())
        if norm < 1e-6:
            continue
        offset = ((path - path[0]) * np.array([-line[1], line[0]])).sum(1) / norm
        sides = np.sign(offset[np.abs(offset) >= MIN_BOW])
        counts[row] = int((sides[1:] != sides[:-1]).sum())
    return counts


def jerk(actions: np.ndarray) -> np.ndarray:
    """Return each episode's mean length of the second difference of the velocities, in table units per step^3.

    Args:
        actions: Velocity actions [E, S, 3], NaN after an episode's end.

    Returns:
        float64 [E]; 0 for episodes shorter than three steps.
    """
    if actions.ndim != 3 or actions.shape[2] != ACTION_DIM:
        raise ValueError(f"actions must have shape [E, S, {ACTION_DIM}], got {actions.shape}")
    change = np.diff(SPEED * np.clip(actions[..., :2], -1, 1).astype(np.float64), n=2, axis=1)
    length = np.sqrt((change**2).sum(-1))
    known = np.isfinite(length)
    return np.where(known, length, 0).sum(1) / np.maximum(1, known.sum(1))
