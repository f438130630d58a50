"""The oracle: reads a scene's attributes from pixels and scores images against scenes.

It explains an image as flat objects on a flat background: background from the border, objects as connected
regions of an opaque palette colour, shape by rendering every shape with the region's own centre and area and
comparing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.bench.testbeds.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    POSITIONS,
    SHAPES,
    UNIT_AREA,
    Scene,
    coverage,
    read_caption,
)
from noiseworks.core.errors import InputError
from scipy import ndimage

if TYPE_CHECKING:
    from torch import Tensor

BACKGROUND_TOLERANCE = 0.25  # RGB distance; palette backgrounds are 0.87 apart
COLOR_TOLERANCE = 0.35  # RGB distance; palette colours are at least 0.6 apart
FLAT_SHARE = 0.8  # share of the border that must show the background
MIN_AREA = 18.0  # pixels; the smallest rendered object covers 43
MIN_OVERLAP = 0.6  # soft intersection over union with the best shape
SIZE_LIMIT = 6.4  # pixels of radius, between small and large

_COLOR_NAMES, _BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)
_COLOR_VALUES = np.array(list(COLORS.values()), np.float32)
_BACKGROUND_VALUES = np.array(list(BACKGROUNDS.values()), np.float32)
_BORDER = np.ones((IMAGE_SIZE, IMAGE_SIZE), bool)
_BORDER[1:-1, 1:-1] = False
_PLANE = np.zeros((3, 3, 3), bool)  # 4-neighbours in the image plane; images of a batch are never joined
_PLANE[1, 1, :] = _PLANE[1, :, 1] = True


@dataclass(frozen=True)
class Found:
    """One object that the oracle sees.

    Attributes:
        shape: One of `SHAPES`, or None when the region resembles none.
        color: A key of `COLORS`, or None when the region shows no palette colour.
        x: Centroid from the left edge, in pixels.
        y: Centroid from the top edge, in pixels.
        radius: Radius in pixels, from the area.
    """

    shape: str | None
    color: str | None
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        """`small` or `large`."""
        return "small" if self.radius < SIZE_LIMIT else "large"

    @property
    def position(self) -> str:
        """The nearest key of `POSITIONS`."""
        return min(
            POSITIONS,
            key=lambda name: (POSITIONS[name][0] - self.x) ** 2 + (POSITIONS[name][1] - self.y) ** 2,
        )


@dataclass(frozen=True)
class Reading:
    """What the oracle reads from one image.

    Attributes:
        background: A key of `BACKGROUNDS`, or None when the border is not flat or of another colour.
        objects: The objects found, largest first; empty when the background is unknown.
    """

    background: str | None
    objects: tuple[Found, ...]


def read(images: np.ndarray) -> list[Reading]:
    """Read the attributes of images.

    Args:
        images: Floats [n, 32, 32, 3] in [0, 1]; values outside are clipped.

    Raises:
        InputError: When the shape is another or a value is not finite.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise InputError(
            f"images must have shape [n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3], got {list(images.shape)}"
        )
    if not np.isfinite(images).all():
        raise InputError("images must be finite, got NaN or infinity")
    images = images.clip(0, 1)
    background, known = _read_backgrounds(images)
    alpha = _opacity(images, background) * known[:, None, None]
    labels, regions = ndimage.label(alpha > 0.5, structure=_PLANE)
    found: list[list[Found]] = [[] for _ in images]
    for index, item in _read_regions(images, alpha, labels, regions):
        found[index].append(item)
    return [
        Reading(_BACKGROUND_NAMES[b] if k else None, tuple(sorted(items, key=lambda o: -o.radius)))
        for b, k, items in zip(background, known, found, strict=True)
    ]


def _read_backgrounds(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest background of each image [n] and whether the border really shows it [n]."""
    border = images[:, _BORDER]
    middle = np.median(border, axis=1)
    best = _distance(middle[:, None], _BACKGROUND_VALUES).argmin(1)
    near = _distance(border, _BACKGROUND_VALUES[best][:, None]) < BACKGROUND_TOLERANCE
    return best, near.mean(1) >= FLAT_SHARE


def background_colors(images: np.ndarray) -> np.ndarray:
    """Return the palette background nearest to each image's border, float32 [n, 3]."""
    return _BACKGROUND_VALUES[_read_backgrounds(images)[0]]


def _opacity(images: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return each pixel's opacity [n, 32, 32]: its place on the line from background to palette colour."""
    base = _BACKGROUND_VALUES[background][:, None, None]
    offset = images - base
    lines = _COLOR_VALUES[None] - _BACKGROUND_VALUES[background][:, None]  # [n, colours, 3]
    dots = np.einsum("nhwc,nkc->nhwk", offset, lines)
    along = (dots / (lines**2).sum(-1)[:, None, None]).clip(0, 1)
    miss = (offset**2).sum(-1)[..., None] - 2 * along * dots + along**2 * (lines**2).sum(-1)[:, None, None]
    return np.take_along_axis(along, miss.argmin(-1)[..., None], -1)[..., 0]


def _read_regions(images, alpha, labels, regions: int) -> list[tuple[int, Found]]:
    """Return (image index, object) of every region that is large enough."""
    if not regions:
        return []
    ids = np.arange(1, regions + 1)
    owner = ndimage.labeled_comprehension(np.broadcast_to(np.arange(len(images))[:, None, None],
    alpha.shape), labels,
                                          ids, np.min, np.int64, 0)  # fmt: skip
    kept = ids[ndimage.sum_labels(np.ones_like(alpha), labels, ids) >= MIN_AREA]
    if not len(kept):
        return []
    owner = owner[kept - 1]
    own = labels[owner] == kept[:, None, None]
    soft = np.where(ndimage.binary_dilation(own, _PLANE) & ((labels[owner] == 0) | own), alpha[owner], 0)
    area = soft.sum((1, 2))
    axis = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x, y = soft.sum(1) @ axis / area, soft.sum(2) @ axis / area
    overlap = np.stack([_overlap(soft, shape, x, y, np.sqrt(area / UNIT_AREA[shape])) for shape in SHAPES], 1)
    shape = overlap.argmax(1)
    radius = np.sqrt(area / np.array([UNIT_AREA[s] for s in SHAPES])[shape])
    weight = own * (
        alpha[owner] >= np.quantile(np.where(own, alpha[owner], 0), 0.97, axis=(1, 2), keepdims=True)
    )
    mean = np.einsum("rhw,rhwc->rc", weight, images[owner]) / weight.sum((1, 2))[:, None]
    distance = _distance(mean[:, None], _COLOR_VALUES)
    color = distance.argmin(1)
    return [
        (
            int(owner[i]),
            Found(
                SHAPES[shape[i]] if overlap[i, shape[i]] >= MIN_OVERLAP else None,
                _COLOR_NAMES[color[i]] if distance[i, color[i]] < COLOR_TOLERANCE else None,
                float(x[i]),
                float(y[i]),
                float(radius[i]),
            ),
        )
        for i in range(len(kept))
    ]


def _overlap(soft: np.ndarray, shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the soft intersection over union [r] of regions with a shape of the same centre and area."""
    model = coverage(shape, x, y, radius, supersampling=2)
    return np.minimum(soft, model).sum((1, 2)) / np.maximum(soft, model).sum((1, 2))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).sum(-1))


def attributes(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Return which requested attributes an image's reading gets right.

    Nothing is right when no object is found. In a scene with a relation the two largest objects are matched
    to the requested ones in the better of both ways, and the relation is right only when both objects are.

    Args:
        reading: What the oracle read.
        scene: What was asked for.

    Returns:
        Attribute -> right. `single`: count, background, shape, color, size, position. `group`: count,
        background, shape, color. `relation`: count, background, shape and color of both objects, relation.
    """
    found = reading.objects
    first = scene.objects[0]
    right = {
        "count": len(found) == len(scene.objects),
        "background": bool(found) and reading.background == scene.background,
    }
    if scene.kind == "relation":
        right |= _relation_attributes(found, scene)
    else:
        right["shape"] = bool(found) and all(item.shape == first.shape for item in found)
        right["color"] = bool(found) and all(item.color == first.color for item in found)
    if scene.kind == "single":
        right["size"] = bool(found) and found[0].size == scene.size
        right["position"] = bool(found) and found[0].position == scene.position
    return right


def _relation_attributes(found: tuple[Found, ...], scene: Scene) -> dict[str, bool]:
    best: dict[str, bool] = {}
    pair = (*found[:2], None, None)[:2]
    for a, b in (pair, pair[::-1]):
        trial = {}
        for name, item, wanted in (("first", a, scene.objects[0]), ("second", b, scene.objects[1])):
            trial[f"{name} shape"] = item is not None and item.shape == wanted.shape
            trial[f"{name} color"] = item is not None and item.color == wanted.color
        trial["relation"] = all(trial.values()) and _holds(scene.relation, a, b)
        if not best or sum(trial.values()) > sum(best.values()):
            best = trial
    return best


def _holds(relation: str | None, a: Found, b: Found) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    return dx > abs(dy) if relation == "left of" else dy > abs(dx)


def score(images: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
    """Return the share of the requested attributes that the oracle finds right in each image.

    Args:
        images: Floats [n, 32, 32, 3] in [0, 1].
        scenes: The n requested scenes.

    Returns:
        float64 [n] in [0, 1].

    Raises:
        InputError: When the numbers of images and scenes differ, or for images that `read` refuses.
    """
    if len(images) != len(scenes):
        raise InputError(f"score needs one scene an image, got {len(images)} images and {len(scenes)} scenes")
    readings = read(images)
    rights = [attributes(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    return np.array([np.mean(list(right.values())) for right in rights], np.float64)


_OPEN = {"color0": ("color", "first color"), "color1": ("second color",)}


def caption_score(images: "Tensor", captions: Sequence[str]) -> np.ndarray:
    """Return the share right of what each caption states, float64 [n]: a reward for tuning on this testbed.

    Args:
        images: A tensor [n, 3, H, W] in [0, 1]; other sizes than 32 are scaled.
        captions: One an image; what a caption leaves open does not count.

    Raises:
        InputError: When a text is no caption of this testbed.
    """
    from torch.nn.functional import interpolate

    asked = [read_caption(text) for text in captions]
    if images.shape[-1] != IMAGE_SIZE:
        images = interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="area")
    readings = read(images.permute(0, 2, 3, 1).float().cpu().numpy())
    shares = []
    for reading, (scene, left_open) in zip(readings, asked, strict=True):
        open_names = {name for word in left_open for name in _OPEN.get(word, (word,))}
        right = attributes(reading, scene)
        shares.append(float(np.mean([value for name, value in right.items() if name not in open_names])))
    return np.array(shares)
