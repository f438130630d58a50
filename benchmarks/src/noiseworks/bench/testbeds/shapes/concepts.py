"""Concepts: one coloured shape each, pairs of them, prompts that name one of a pair, and how visible they are.

The oracle's attributes are right or wrong. Here a concept is visible to a degree, also in a two-coloured object: each
colour's own part of the image is compared with the shape that was asked for.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from noiseworks.bench.testbeds.shapes.oracle import background_colors
from noiseworks.bench.testbeds.shapes.scenes import COLORS, RELATIONS, SHAPES, UNIT_AREA, coverage
from noiseworks.core.checks import check_choice, check_number, check_seed
from noiseworks.core.errors import InputError
from scipy import ndimage

CONCEPTS = tuple(f"a {color} {shape}" for shape, color in product(SHAPES, COLORS))
COLOR_MISS = 0.2  # RGB distance from the line between background and colour at which membership is 1/e
LEAST_AREA = 12.0  # pixels; less is an edge between two other colours
FULL_AREA = 60.0  # pixels; the smallest object of a scene with two covers 68
SHARPNESS = 0.05  # of overlaps: how far the right shape must be ahead of the others


def concept_pairs(n: int, seed: int) -> list[tuple[str, str]]:
    """Return pairs of concepts that differ in shape and in colour, without repetition while there are any.

    Args:
        n: Number of pairs.
        seed: Of their order.
    """
    check_number("n", n, low=0, integer=True)
    check_seed("seed", seed)
    pairs = [
        (a, b)
        for a, b in product(CONCEPTS, repeat=2)
        if a < b and all(x != y for x, y in zip(a.split()[1:], b.split()[1:], strict=True))
    ]
    order = np.random.default_rng([seed, 17]).permutation(len(pairs))
    return [pairs[order[i % len(pairs)]] for i in range(n)]


def open_prompts(pair: tuple[str, str], relation: str) -> tuple[str, str]:
    """Return two captions of one scene, each of which leaves the other concept's colour open.

    `a red circle left of a square` and `a circle left of a blue square`.

    Args:
        pair: Two concepts.
        relation: A key of `RELATIONS`.

    Raises:
        InputError: When the relation is unknown.
    """
    check_choice("relation", relation, tuple(RELATIONS))
    first, second = pair
    return (
        f"{first} {relation} a {second.split()[2]}",
        f"a {first.split()[2]} {relation} {second}",
    )


def concept_scores(images: np.ndarray, concepts: Sequence[str]) -> np.ndarray:
    """Return how visible a concept is in each image, float64 [n] in [0, 1].

    Of every region of the concept's colour: min(1, area / 60 pixels) times the share of the shape among all
    shapes, a softmax of soft overlaps with shapes of the region's own centre and area. The best region counts.

    Args:
        images: Floats [n, 32, 32, 3] in [0, 1].
        concepts: One of `CONCEPTS` an image.

    Raises:
        InputError: When there are other numbers of images and concepts, or a text is no concept.
    """
    unknown = next((text for text in concepts if text not in CONCEPTS), None)
    if unknown is not None:
        raise InputError(f"{unknown!r} is no concept of the testbed shapes, such as {CONCEPTS[0]!r}")
    if len(images) != len(concepts):
        raise InputError(f"{len(images)} images need as many concepts, got {len(concepts)}")
    images = np.asarray(images, np.float32).clip(0, 1)
    wanted = [text.split()[1:] for text in concepts]
    parts = _membership(images, np.array([COLORS[color] for color, _ in wanted], np.float32))
    return np.array([_best(part, shape) for part, (_, shape) in zip(parts, wanted, strict=True)])


def _membership(images: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return how much of each pixel [n, 32, 32] shows a colour [n, 3] over its image's background."""
    base = background_colors(images)[:, None, None]
    line = colors[:, None, None] - base
    offset = images - base
    along = ((offset * line).sum(-1) / (line**2).sum(-1)).clip(0, 1)
    miss = np.sqrt(((offset - along[..., None] * line) ** 2).sum(-1))
    return along * np.exp(-((miss / COLOR_MISS) ** 2))


def _best(part: np.ndarray, shape: str) -> float:
    labels, count = ndimage.label(part > 0.4)
    scores = [0.0]
    for index in range(1, count + 1):
        soft = np.where(ndimage.binary_dilation(labels == index) & np.isin(labels, (0, index)), part, 0)
        area = float(soft.sum())
        if area < LEAST_AREA:
            continue
        axis = np.arange(len(soft)) + 0.5
        x, y = (np.array([soft.sum(side) @ axis / area]) for side in (0, 1))
        overlaps = []
        for name in SHAPES:
            model = coverage(name, x, y, np.array([np.sqrt(area / UNIT_AREA[name])]), supersampling=2)[0]
            overlaps.append(np.minimum(soft, model).sum() / np.maximum(soft, model).sum())
        weights = np.exp((np.array(overlaps) - max(overlaps)) / SHARPNESS)
        scores.append(min(1.0, area / FULL_AREA) * float(weights[SHAPES.index(shape)] / weights.sum()))
    return max(scores)
