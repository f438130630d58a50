"""The ego vehicle of nuPlan (a Chrysler Pacifica), and boxes on the plane."""

import numpy as np

WIDTH, FRONT, REAR = 2.297, 4.049, 1.127  # metres; front and rear from the rear axle
LENGTH = FRONT + REAR
WHEELBASE = 3.089
CENTRE = 1.461  # of the body, ahead of the rear axle


def wrap(angle: np.ndarray) -> np.ndarray:
    """Return angles in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def ego_boxes(poses: np.ndarray) -> np.ndarray:
    """Return the body's boxes [..., 5] (centre x, y, heading, half length, half width) of rear-axle poses [..., 3]."""
    x, y, heading = np.moveaxis(poses, -1, 0)
    parts = (x + CENTRE * np.cos(heading), y + CENTRE * np.sin(heading), heading)
    return np.stack((*parts, np.full_like(x, LENGTH / 2), np.full_like(x, WIDTH / 2)), axis=-1)


def bumpers(poses: np.ndarray) -> np.ndarray:
    """Return the front bumpers of rear-axle poses [..., 3] as boxes [..., 5] without length."""
    x, y, heading = np.moveaxis(poses, -1, 0)
    parts = (x + FRONT * np.cos(heading), y + FRONT * np.sin(heading), heading)
    return np.stack((*parts, np.zeros_like(x), np.full_like(x, WIDTH / 2)), axis=-1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners [..., 4, 2] of boxes [..., 5]: front left, rear left, rear right, front right."""
    x, y, heading, length, width = (part[..., None] for part in np.moveaxis(boxes, -1, 0))
    ahead = np.array((1.0, -1.0, -1.0, 1.0)) * length
    left = np.array((1.0, 1.0, -1.0, -1.0)) * width
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack((x + ahead * cos - left * sin, y + ahead * sin + left * cos), axis=-1)


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which boxes [..., 5] share a point, by separating axes; a box may have no length.

    Two rectangles are apart if and only if their projections on one of the four sides' directions are; touching
    counts as sharing.
    """
    delta = other[..., :2] - one[..., :2]
    turn = other[..., 2] - one[..., 2]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))

    def meets(box: np.ndarray, rival: np.ndarray) -> np.ndarray:
        c, s = np.cos(box[..., 2]), np.sin(box[..., 2])
        along = np.abs(delta[..., 0] * c + delta[..., 1] * s)
        across = np.abs(delta[..., 1] * c - delta[..., 0] * s)
        reach = rival[..., 3] * cos + rival[..., 4] * sin
        spread = rival[..., 3] * sin + rival[..., 4] * cos
        return (along <= box[..., 3] + reach) & (across <= box[..., 4] + spread)

    return meets(one, other) & meets(other, one)
