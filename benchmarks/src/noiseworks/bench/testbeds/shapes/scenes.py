"""Scenes of coloured shapes: attributes, splits, rendering and captions.

Three kinds of scene: one object with size and place, two objects in a spatial relation, and a group of two
or three equal objects. All of it is drawn from a seed; images are rendered with 4x4 supersampling.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from noiseworks.core.checks import check_choice, check_number, check_seed
from noiseworks.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "test", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "test", "heldout")

IMAGE_SIZE = 32
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.20, 0.95),
    "yellow": (0.98, 0.88, 0.05),
    "purple": (0.70, 0.10, 0.85),
    "cyan": (0.10, 0.85, 0.95),
}
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)}
RADII = {"small": 5.0, "large": 8.0}
RELATION_RADIUS = 5.5
POSITIONS = {
    "top left": (9.5, 9.5),
    "top": (16.0, 9.5),
    "top right": (22.5, 9.5),
    "left": (9.5, 16.0),
    "center": (16.0, 16.0),
    "right": (22.5, 16.0),
    "bottom left": (9.5, 22.5),
    "bottom": (16.0, 22.5),
    "bottom right": (22.5, 22.5),
}
RELATIONS = {"left of": ((8.5, 16.0), (23.5, 16.0)), "above": ((16.0, 8.5), (16.0, 23.5))}
QUADRANTS = ((8.5, 8.5), (23.5, 8.5), (8.5, 23.5), (23.5, 23.5))
COUNTS = {2: "two", 3: "three"}
KIND_SHARES = {"single": 0.65, "relation": 0.22, "group": 0.13}

# Area of a shape of radius 1; the square, triangle and cross are sized to look about as large as the circle.
SQUARE_HALF, TRIANGLE_RADIUS, CROSS_LENGTH, CROSS_WIDTH = 0.88, 1.20, 1.05, 0.36
UNIT_AREA = {
    "circle": np.pi,
    "square": 4 * SQUARE_HALF**2,
    "triangle": 3 * np.sqrt(3) / 4 * TRIANGLE_RADIUS**2,
    "cross": 8 * CROSS_LENGTH * CROSS_WIDTH - 4 * CROSS_WIDTH**2,
}
_SHAPE_NAMES, _COLOR_NAMES, _BACKGROUND_NAMES = SHAPES, tuple(COLORS), tuple(BACKGROUNDS)

_EXAMPLE = "a small red circle at the top left on a gray background"

# Combinations (shape, colour, background) that no training scene holds: 8 of 72.
HELDOUT = frozenset(
    (shape, color, background)
    for i, shape in enumerate(SHAPES)
    for j, color in enumerate(COLORS)
    for k, background in enumerate(BACKGROUNDS)
    if (2 * i + j + 3 * k) % 9 == 0
)

# How noisy the training captions are; guidance has something to do only because of these.
OTHER_SCENE_RATE = 0.33
WRONG_WORD_RATE = 0.15
OMIT_RATES = {"size": 0.2, "color": 0.1, "position": 0.25, "background": 0.25}


@dataclass(frozen=True)
class Object:
    """One object.

    Attributes:
        shape: One of `SHAPES`.
        color: A key of `COLORS`.
        x: Centroid from the left edge, in pixels.
        y: Centroid from the top edge, in pixels.
        radius: Radius in pixels (of the circle that looks about as large).
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What an image shows and what its caption says.

    Attributes:
        kind: `single`, `relation` (two objects) or `group` (two or three equal objects).
        background: A key of `BACKGROUNDS`.
        objects: In a `relation` scene the first object is left of or above the second.
        size: A key of `RADII`; None unless `single`.
        position: A key of `POSITIONS`; None unless `single`.
        relation: A key of `RELATIONS`; None unless `relation`.
    """

    kind: Literal["single", "relation", "group"]
    background: str
    objects: tuple[Object, ...]
    size: str | None = None
    position: str | None = None
    relation: str | None = None

    @property
    def heldout(self) -> bool:
        """Whether the scene holds a combination that training never shows."""
        return any((o.shape, o.color, self.background) in HELDOUT for o in self.objects)


def sample_scenes(n: int, seed: int, split: Split = "train") -> list[Scene]:
    """Draw scenes; the same arguments always give the same scenes, and scene i does not depend on `n`.

    Args:
        n: Number of scenes.
        seed: Seed within the split; the streams of different splits never meet.
        split: `train`; `test` (other scenes of the same combinations); `heldout` (every scene holds a
            combination of shape, colour and background that training never shows).

    Raises:
        InputError: When `n` or `seed` is negative or `split` is unknown.
    """
    check_number("n", n, low=0, integer=True)
    check_seed("seed", seed)
    check_choice("split", split, SPLITS)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    scenes: list[Scene] = []
    while len(scenes) < n:
        scene = _draw(rng)
        if scene.heldout == (split == "heldout"):
            scenes.append(scene)
    return scenes


def _draw(rng: np.random.Generator) -> Scene:
    kind = rng.choice(tuple(KIND_SHARES), p=tuple(KIND_SHARES.values()))
    background = _pick(rng, _BACKGROUND_NAMES)
    shape, color = _pick(rng, _SHAPE_NAMES), _pick(rng, _COLOR_NAMES)
    if kind == "single":
        size, position = _pick(rng, tuple(RADII)), _pick(rng, tuple(POSITIONS))
        placed = _place(rng, shape, color, POSITIONS[position], RADII[size], jitter=1.0)
        return Scene("single", background, (placed,), size=size, position=position)
    if kind == "relation":
        relation = _pick(rng, tuple(RELATIONS))
        other = (shape, color)
        while other == (shape, color):
            other = (_pick(rng, _SHAPE_NAMES), _pick(rng, _COLOR_NAMES))
        first = _place(rng, shape, color, RELATIONS[relation][0], RELATION_RADIUS, jitter=0.5)
        second = _place(rng, *other, RELATIONS[relation][1], RELATION_RADIUS, jitter=0.5)
        return Scene("relation", background, (first, second), relation=relation)
    count = int(rng.integers(2, 4))
    slots = rng.permutation(len(QUADRANTS))[:count]
    group = tuple(_place(rng, shape, color, QUADRANTS[s], RADII["small"], jitter=0.5) for s in sorted(slots))
    return Scene("group", background, group)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _place(rng, shape: str, color: str, center: tuple[float, float], radius: float, jitter: float) -> Object:
    dx, dy = rng.uniform(-jitter, jitter, 2)
    return Object(shape, color, center[0] + dx, center[1] + dy, radius * rng.uniform(0.96, 1.04))


def coverage(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, supersampling: int = 4
) -> np.ndarray:
    """Return how much of each pixel a shape covers.

    Args:
        shape: One of `SHAPES`.
        x: Centroids from the left edge in pixels, shape [n].
        y: Centroids from the top edge in pixels, shape [n].
        radius: Radii in pixels, shape [n].
        supersampling: Samples a pixel along each axis.

    Returns:
        float32 [n, 32, 32] in [0, 1].
    """
    axis = ((np.arange(IMAGE_SIZE * supersampling) + 0.5) / supersampling).astype(np.float32)
    u = (axis[None, :] - x[:, None].astype(np.float32)) / radius[:, None].astype(np.float32)
    v = (axis[None, :] - y[:, None].astype(np.float32)) / radius[:, None].astype(np.float32)
    if shape == "circle":
        inside = (u**2)[:, None, :] + (v**2)[:, :, None] < 1
    elif shape == "square":
        inside = (np.abs(u) < SQUARE_HALF)[:, None, :] & (np.abs(v) < SQUARE_HALF)[:, :, None]
    elif shape == "triangle":  # equilateral, pointing up
        width = (v + TRIANGLE_RADIUS) / np.sqrt(np.float32(3))
        width = np.where(v < TRIANGLE_RADIUS / 2, width, -1)
        inside = np.abs(u)[:, None, :] < width[:, :, None]
    else:
        long_u, long_v = np.abs(u) < CROSS_LENGTH, np.abs(v) < CROSS_LENGTH
        thin_u, thin_v = np.abs(u) < CROSS_WIDTH, np.abs(v) < CROSS_WIDTH
        inside = long_u[:, None, :] & thin_v[:, :, None] | thin_u[:, None, :] & long_v[:, :, None]
    cells = inside.reshape(len(x), IMAGE_SIZE, supersampling, IMAGE_SIZE, supersampling)
    return cells.mean((2, 4), dtype=np.float32)


def render(scenes: Sequence[Scene]) -> np.ndarray:
    """Render scenes with 4x4 supersampling.

    Returns:
        float32 [n, 32, 32, 3] in [0, 1].
    """
    background = np.array([BACKGROUNDS[s.background] for s in scenes], np.float32).reshape(-1, 1, 1, 3)
    images = np.broadcast_to(background, (len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    layers: dict[tuple[int, str], list[tuple[int, Object]]] = {}
    for index, scene in enumerate(scenes):
        for layer, item in enumerate(scene.objects):
            layers.setdefault((layer, item.shape), []).append((index, item))
    for (_, shape), entries in sorted(layers.items()):
        for start in range(0, len(entries), 256):
            part = entries[start : start + 256]
            where = np.array([index for index, _ in part])
            x, y, radius = (
                np.array([getattr(item, name) for _, item in part]) for name in ("x", "y", "radius")
            )
            alpha = coverage(shape, x, y, radius)[..., None]
            color = np.array([COLORS[item.color] for _, item in part], np.float32)[:, None, None]
            images[where] += alpha * (color - images[where])
    return images


def pixel_scenes(n: int, seed: int, split: Split = "train") -> "Tensor":
    """Return scenes of half the side as images [n, 3, 16, 16] in [-1, 1], averaged over 2x2 pixels.

    Args:
        n: Number of scenes.
        seed: Seed within the split.
        split: As in `sample_scenes`.
    """
    import torch

    images = torch.from_numpy(render(sample_scenes(n, seed, split))).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(images, 2).mul(2).sub(1)


def caption(scene: Scene) -> str:
    """Return the clean and complete caption: `a small red circle at the top left on a gray background`."""
    return _phrase(scene, frozenset())


def _phrase(scene: Scene, omitted: frozenset[str]) -> str:
    def words(item: Object, index: int, plural: bool = False) -> str:
        noun = PLURALS[item.shape] if plural else item.shape
        return noun if f"color{index}" in omitted else f"{item.color} {noun}"

    first = scene.objects[0]
    if scene.kind == "single":
        size = "" if "size" in omitted else f"{scene.size} "
        place = "" if "position" in omitted else f" at the {scene.position}"
        text = f"a {size}{words(first, 0)}{place}"
    elif scene.kind == "relation":
        text = f"a {words(first, 0)} {scene.relation} a {words(scene.objects[1], 1)}"
    else:
        text = f"{COUNTS[len(scene.objects)]} {words(first, 0, plural=True)}"
    return text if "background" in omitted else f"{text} on a {scene.background} background"


def _any(words: Iterable[str]) -> str:
    return "|".join(words)


_CAPTION = re.compile(
    rf"(?:(?P<count>{_any(COUNTS.values())})|a)(?: (?P<size>{_any(RADII)}))?"
    rf"(?: (?P<color0>{_any(COLORS)}))? (?P<shape0>{_any((*SHAPES, *PLURALS.values()))})"
    rf"(?: at the (?P<position>{_any(POSITIONS)}))?"
    rf"(?: (?P<relation>{_any(RELATIONS)}) a(?: (?P<color1>{_any(COLORS)}))? (?P<shape1>{_any(SHAPES)}))?"
    rf"(?: on a (?P<background>{_any(BACKGROUNDS)}) background)?"
)


def read_caption(text: str) -> tuple[Scene, frozenset[str]]:
    """Return the scene that a caption asks for, and what it leaves open.

    Args:
        text: A caption, complete or with attributes left out.

    Returns:
        The scene, in which open attributes have some value or None, and the names of those among `size`, `position`,
        `background`, `color0` (of the first object, or of the group) and `color1`.

    Raises:
        InputError: When the text is no caption of this testbed.
    """
    found = _CAPTION.fullmatch(" ".join(text.split()))
    if found is None:
        raise InputError(
            f"{text!r} is no caption of the testbed shapes, such as {_EXAMPLE!r}; use its words and their order"
        )
    said = found.groupdict()
    kind = "group" if said["count"] else "relation" if said["relation"] else "single"
    parts = {"single": ("size", "color0", "position"), "relation": ("color0", "color1"), "group": ("color0",)}
    background = said["background"] or _BACKGROUND_NAMES[0]
    names = {plural: shape for shape, plural in PLURALS.items()}
    shapes = [names.get(said[f"shape{i}"], said[f"shape{i}"]) for i in range(2 if kind == "relation" else 1)]
    objects = [
        Object(shape, said[f"color{i}"] or _COLOR_NAMES[0], 16.0, 16.0, 5.0) for i, shape in enumerate(shapes)
    ]
    if kind == "group":
        objects *= {word: number for number, word in COUNTS.items()}[said["count"]]
    scene = Scene(kind, background, tuple(objects), said["size"], said["position"], said["relation"])
    return scene, frozenset(name for name in (*parts[kind], "background") if said[name] is None)


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption as noisy and incomplete as those of the training set.

    With probability 0.33 it is the caption of another training scene. On top, every attribute word is
    replaced by a random one of its kind with probability 0.15, and size (0.2), colours (0.1 each), place
    (0.25) and background (0.25) are left out.

    Args:
        scene: The scene that the image shows.
        rng: Source of the noise.
    """
    if rng.random() < OTHER_SCENE_RATE:
        scene = _draw(rng)
        while scene.heldout:
            scene = _draw(rng)
    scene = _with_wrong_words(scene, rng)
    omitted = {name for name in ("size", "position", "background") if rng.random() < OMIT_RATES[name]}
    omitted |= {f"color{i}" for i in range(2) if rng.random() < OMIT_RATES["color"]}
    return _phrase(scene, frozenset(omitted))


def _with_wrong_words(scene: Scene, rng: np.random.Generator) -> Scene:
    def maybe(value: str | None, options: Sequence[str]) -> str | None:
        return _pick(rng, options) if value is not None and rng.random() < WRONG_WORD_RATE else value

    objects = tuple(
        replace(o, shape=maybe(o.shape, _SHAPE_NAMES), color=maybe(o.color, _COLOR_NAMES))
        for o in scene.objects
    )
    return replace(
        scene,
        objects=objects,
        background=maybe(scene.background, _BACKGROUND_NAMES),
        size=maybe(scene.size, tuple(RADII)),
        position=maybe(scene.position, tuple(POSITIONS)),
        relation=maybe(scene.relation, tuple(RELATIONS)),
    )


def vocabulary() -> tuple[str, ...]:
    """Return every word that captions use, sorted."""
    words = {"a", "at", "the", "on", "background", *SHAPES, *PLURALS.values(), *COLORS, *BACKGROUNDS, *RADII}
    for phrase in (*POSITIONS, *RELATIONS, *COUNTS.values()):
        words.update(phrase.split())
    return tuple(sorted(words))
