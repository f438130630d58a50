"""The ego vehicle of nuPlan (a Chrysler Pacifica), and boxes on the plane."""

import numpy as np

WIDTH, FRONT, REAR = 2.297, 4.049, 1.127  # metres; front and rear from the rear axle
LENGTH = FRONT + REAR
WHEELBASE = 3.089
CENTRE = 1.461  # of the body, ahead of the rear axle


def wrap(angle: np.ndarray) -> np.ndarray:
    """Return angles in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def centres(poses: np.ndarray) -> np.ndarray:
    """Return the body's centres [..., 2] of rear-axle poses [..., 3]."""
    heading = poses[..., 2]
    return poses[..., :2] + CENTRE * np.stack((np.cos(heading), np.sin(heading)), axis=-1)


def bodies(centre: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """Return the body's boxes [..., 5] (centre x, y, heading, half length, half width) about centres [..., 2]."""
    half = np.broadcast_to((LENGTH / 2, WIDTH / 2), centre.shape)
    return np.concatenate((centre, heading[..., None], half), axis=-1)


def ego_boxes(poses: np.ndarray) -> np.ndarray:
    """Return the body's boxes [..., 5] (centre x, y, heading, half length, half width) of rear-axle poses [..., 3]."""
    return bodies(centres(poses), poses[..., 2])


def bumpers(poses: np.ndarray) -> np.ndarray:
    """Return the front bumpers of rear-axle poses [..., 3] as boxes [..., 5] without length."""
    x, y, heading = np.moveaxis(poses, -1, 0)
    parts = (x + FRONT * np.cos(heading), y + FRONT * np.sin(heading), heading)
    return np.stack((*parts, np.zeros_like(x), np.full_like(x, WIDTH / 2)), axis=-1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners [..., 4, 2] of boxes [..., 5]: front left, rear left, rear right, front right."""
    x, y, heading, length, width = np.moveaxis(boxes, -1, 0)
    cos, sin = np.cos(heading), np.sin(heading)
    ahead, left = np.stack((length * cos, length * sin)), np.stack((-width * sin, width * cos))
    centre = np.stack((x, y))
    front, rear = centre + ahead, centre - ahead
    # A coordinate and a corner at a time lie together, which is how they are read.
    found = np.stack((front + left, rear + left, rear - left, front - left))
    return np.moveaxis(found, (0, 1), (-2, -1))


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
