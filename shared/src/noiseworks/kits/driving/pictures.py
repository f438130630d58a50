"""Scenes and plans from above."""

import numpy as np
from noiseworks.kits.driving.scenes import NOTHING, PADDING, Scenes, on_strips
from noiseworks.kits.driving.vehicle import corners, ego_boxes

SIZE, REACH = 240, 40.0
GROUND, ROAD, ROUTE = (233, 236, 226), (196, 200, 205), (222, 226, 232)
OBJECT, EGO, EXPERT = (92, 104, 122), (24, 90, 170), (40, 150, 90)


def draw_scene(
    scenes: Scenes,
    index: int,
    plans: np.ndarray,
    scores: np.ndarray | None = None,
    expert: np.ndarray | None = None,
    *,
    time: int = 0,
    ego: np.ndarray | None = None,
) -> np.ndarray:
    """Return a picture of a scene with plans, uint8 [240, 240, 3]; ahead is up.

    Args:
        scenes: The scenes.
        index: Which one.
        plans: [N, 8, 3].
        scores: Of the plans, [N]: the best is drawn strongest.
        expert: The expert's plan, [8, 3], in green.
        time: Where the objects are drawn, steps of 0.1 s.
        ego: The ego's pose at that time, [3]; by default where it starts.
    """
    from PIL import Image, ImageDraw

    middles = REACH - (np.arange(SIZE) + 0.5) * 2 * REACH / SIZE
    x, y = np.meshgrid(middles + REACH / 2, middles, indexing="ij")
    grid = np.stack((x, y), axis=-1).reshape(1, -1, 2)
    on = on_strips(scenes.strips[index][None], grid)[0] & (scenes.lanes[index] != PADDING)[:, None]
    road = on.any(axis=0).reshape(SIZE, SIZE)
    image = Image.fromarray(np.where(road[..., None], ROAD, GROUND).astype(np.uint8))
    pen = ImageDraw.Draw(image, "RGBA")

    def at(points: np.ndarray) -> list[tuple[float, float]]:
        scale = SIZE / (2 * REACH)
        return [((REACH - y) * scale, (REACH * 1.5 - x) * scale) for x, y in np.asarray(points)]

    for route in scenes.routes[index][scenes.admissible[index]]:
        pen.line(at(route), fill=ROUTE, width=1)
    for kind, box in zip(scenes.kinds[index], scenes[index : index + 1].boxes()[0, :, time], strict=True):
        if kind != NOTHING:
            pen.polygon(at(corners(box)), fill=OBJECT)
    order = np.arange(len(plans)) if scores is None else np.argsort(scores)
    for rank, plan in enumerate(order):
        strength = 255 if rank == len(order) - 1 else 90
        line = np.concatenate((np.zeros((1, 2)), plans[plan, :, :2]))
        pen.line(at(line), fill=(*EGO, strength), width=2)
    if expert is not None:
        pen.line(at(np.concatenate((np.zeros((1, 2)), expert[:, :2]))), fill=(*EXPERT, 200), width=1)
    pen.polygon(at(corners(ego_boxes(np.zeros(3) if ego is None else ego))), fill=EGO)
    return np.asarray(image)
