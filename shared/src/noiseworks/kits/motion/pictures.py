"""A motion in its room, seen from a corner above."""

import numpy as np
from noiseworks.kits.motion.body import PARENTS
from noiseworks.kits.motion.scenes import Scene

SIZE = 320  # pixels across
GROUND, EDGE, TOP, SIDE, SHADE = (
    (236, 236, 230),
    (150, 152, 148),
    (214, 190, 158),
    (190, 164, 130),
    (205, 206, 200),
)
LEFT, RIGHT, TRUNK, GOAL, GHOST = (24, 90, 170), (178, 60, 40), (60, 62, 66), (40, 150, 90), (160, 172, 190)
LOOK, TILT = np.deg2rad(35.0), np.deg2rad(32.0)  # about z, and down


class View:
    """Where points of the world are on the picture: an orthographic view that shows a box of the world.

    Args:
        low: Smallest x, y, z that must be seen, [3].
        high: Largest.
        size: Pixels across.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, size: int = SIZE) -> None:
        right = np.array((np.cos(LOOK), np.sin(LOOK), 0.0))
        ahead = np.array((-np.sin(LOOK), np.cos(LOOK), 0.0))
        up = np.sin(TILT) * ahead + np.cos(TILT) * np.array((0.0, 0.0, 1.0))
        self.axes = np.stack((right, up))
        self.depth = np.cos(TILT) * ahead - np.sin(TILT) * np.array((0.0, 0.0, 1.0))
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
        seen = corners @ self.axes.T
        self.middle = (seen.min(0) + seen.max(0)) / 2
        width, height = seen.max(0) - seen.min(0)
        self.scale = 0.94 * size / width
        self.size = (size, round(self.scale * height / 0.94))

    def __call__(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Return pixels of points [N, 3]."""
        seen = (np.asarray(points) @ self.axes.T - self.middle) * self.scale
        return [(self.size[0] / 2 + x, self.size[1] / 2 - y) for x, y in seen]


def box_corners(box: np.ndarray) -> np.ndarray:
    """Return the corners of a box (centre, half widths, angle), the lower four counterclockwise first, [8, 3]."""
    x, y, z, a, b, c, turn = box
    flat = np.array(((-a, -b), (a, -b), (a, b), (-a, b)))
    cosine, sine = np.cos(turn), np.sin(turn)
    flat = flat @ np.array(((cosine, sine), (-sine, cosine))) + (x, y)
    return np.concatenate([np.column_stack((flat, np.full(4, height))) for height in (z - c, z + c)])


def film_motion(
    joints: np.ndarray, scene: Scene | None = None, goals: np.ndarray | None = None, *, every: int = 2
) -> list[np.ndarray]:
    """Return pictures of a motion, 320 pixels wide, uint8 [H, 320, 3] each.

    Args:
        joints: In the world, [F, 22, 3].
        scene: A batch of one; boxes and walls of a `Room` are drawn, other scenes as points of the floor.
        goals: Points, [N, 3].
        every: Frames between two pictures; 2 of 20 a second make a film of 10.
    """
    from PIL import Image, ImageDraw

    low, high = _seen(joints, scene)
    view = View(low, high)
    ground, boxes = _backdrop(view, scene, low, high)
    trail = view(joints[:, 0] * (1, 1, 0))
    pictures = []
    for frame in range(0, len(joints), every):
        image = Image.fromarray(ground)
        pen = ImageDraw.Draw(image)
        pen.line(trail, fill=GHOST, width=1)
        for x, y in view(goals) if goals is not None else []:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), outline=GOAL, width=2)
        hides = [_hides(view, box, joints[frame, 0]) for box in boxes]
        for box, over in zip(boxes, hides, strict=True):
            if not over:
                _draw_box(pen, view, box)
        _draw_body(pen, view, joints[frame])
        for box, over in zip(boxes, hides, strict=True):
            if over:
                _draw_box(pen, view, box)
        pictures.append(np.asarray(image))
    return pictures


def _seen(joints: np.ndarray, scene: Scene | None) -> tuple[np.ndarray, np.ndarray]:
    from noiseworks.kits.motion.scenes import Room

    low, high = joints.min((0, 1)) - 0.4, joints.max((0, 1)) + 0.4
    if isinstance(scene, Room):
        wide = scene.extent[0].numpy()
        low, high = np.minimum(low, (*-wide, 0)), np.maximum(high, (*wide, 1.2))
    low[2], high[2] = min(low[2], 0.0), max(high[2], 1.8)
    return low, high


def _backdrop(
    view: View, scene: Scene | None, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    from noiseworks.kits.motion.scenes import Room, floor_distance
    from PIL import Image, ImageDraw

    image = Image.new("RGB", view.size, "white")
    pen = ImageDraw.Draw(image)
    (x0, y0), (x1, y1) = (low[:2], high[:2])
    boxes: list[np.ndarray] = []
    if isinstance(scene, Room):
        (x1, y1), boxes = (
            scene.extent[0].tolist(),
            [box for box in scene.boxes[0].numpy() if (box[3:6] > 0).all()],
        )
        x0, y0 = -x1, -y1
        boxes.sort(key=lambda box: -float((box[:3] * (1, 1, 0)) @ view.depth))  # the farthest first
    pen.polygon(
        view(np.array(((x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)))), fill=GROUND, outline=EDGE
    )
    if scene is not None and not isinstance(scene, Room):
        places = np.stack(np.meshgrid(np.arange(x0, x1, 0.08), np.arange(y0, y1, 0.08)), -1).reshape(-1, 2)
        inside = places[floor_distance(scene, places) < 0]
        for x, y in view(np.column_stack((inside, np.zeros(len(inside))))):
            pen.rectangle((x - 2, y - 2, x + 2, y + 2), fill=SIDE)
    for box in boxes:
        base = box_corners(box)[:4] * (1, 1, 0)
        pen.polygon(view(base), fill=SHADE)
    return np.asarray(image), boxes


def _hides(view: View, box: np.ndarray, pelvis: np.ndarray) -> bool:
    """Return whether a box is nearer to the eye than a body that is not on it; middles on the floor are compared."""
    nearer = float(((box[:3] - pelvis) * (1, 1, 0)) @ view.depth) < 0
    return nearer and pelvis[2] < box[2] + box[5]


def _draw_box(pen: object, view: View, box: np.ndarray) -> None:
    corners = box_corners(box)
    for i in range(4):
        j = (i + 1) % 4
        side = corners[[i, j, j + 4, i + 4]]
        outward = np.cross(side[1] - side[0], side[3] - side[0])
        if outward @ view.depth < 0:  # it faces the eye
            pen.polygon(view(side), fill=SIDE, outline=EDGE)
    pen.polygon(view(corners[4:]), fill=TOP, outline=EDGE)


def _draw_body(pen: object, view: View, joints: np.ndarray) -> None:
    places = view(joints)
    left = {1, 4, 7, 10, 13, 16, 18, 20}
    right = {2, 5, 8, 11, 14, 17, 19, 21}
    for joint, parent in enumerate(PARENTS[1:], 1):
        color = LEFT if joint in left else RIGHT if joint in right else TRUNK
        pen.line((places[parent], places[joint]), fill=color, width=3)
    x, y = places[15]
    pen.ellipse((x - 5, y - 8, x + 5, y + 2), fill=TRUNK)
