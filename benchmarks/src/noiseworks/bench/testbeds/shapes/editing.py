"""Edits of `shapes` scenes: an object is kept by a mask, and a prompt asks for another background.

Masks are 1 where the editor repaints and 0 in the region that is kept, as in diffusers. The exact silhouette is known
from the renderer; what an editor would draw by hand is dilated, eroded, a box, an ellipse or a convex hull of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from noiseworks.bench.testbeds.shapes.oracle import read
from noiseworks.bench.testbeds.shapes.scenes import BACKGROUNDS, Scene, coverage, sample_scenes
from noiseworks.core.checks import check_choice
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay

MaskKind = Literal["seen", "box", "ellipse", "dilated", "eroded", "hull"]
MASK_KINDS: tuple[MaskKind, ...] = ("seen", "box", "ellipse", "dilated", "eroded", "hull")
UNSEEN: tuple[MaskKind, ...] = MASK_KINDS[1:]


@dataclass(frozen=True)
class Edit:
    """A scene with one object, and the background that a prompt asks for.

    Attributes:
        scene: The scene that the image shows.
        background: The other background.
    """

    scene: Scene
    background: str

    @property
    def prompt(self) -> str:
        """The prompt; it names the shape, and everything else about the object must come from the image."""
        return f"a {self.scene.objects[0].shape} on a {self.background} background"

    @property
    def wanted(self) -> Scene:
        """The scene on its new background."""
        return replace(self.scene, background=self.background)


def sample_edits(n: int, seed: int, split: str = "test") -> list[Edit]:
    """Draw edits of scenes with one object; edit i does not depend on `n`.

    Args:
        n: Number of edits.
        seed: Seed within the split.
        split: As in `sample_scenes`.
    """
    drawn: list[Scene] = []
    count = 2 * n + 8
    while len(drawn) < n:
        drawn = [scene for scene in sample_scenes(count, seed, split) if scene.kind == "single"]
        count *= 2
    rng = np.random.default_rng([seed, 77])
    edits = []
    for scene in drawn[:n]:
        others = [name for name in BACKGROUNDS if name != scene.background]
        edits.append(Edit(scene, others[int(rng.integers(len(others)))]))
    return edits


def kept_region(scene: Scene, kind: MaskKind) -> np.ndarray:
    """Return the region that an editor keeps of a scene with one object, bool [32, 32].

    Args:
        scene: The scene.
        kind: `seen` (the silhouette dilated by one pixel, which a defender would have), or what an editor may use
            instead: its `box`, an `ellipse` in that box, `dilated` by three pixels, `eroded` by two, its convex `hull`.
    """
    check_choice("mask", kind, MASK_KINDS)
    item = scene.objects[0]
    covered = coverage(item.shape, *(np.array([value]) for value in (item.x, item.y, item.radius)))[0]
    silhouette = covered > 0.5
    if kind == "eroded":
        return ndimage.binary_erosion(silhouette, iterations=2)
    if kind in ("seen", "dilated"):
        return ndimage.binary_dilation(silhouette, iterations=1 if kind == "seen" else 3)
    rows, columns = np.nonzero(silhouette)
    if kind == "hull":
        points = np.stack([rows, columns], axis=1)
        mesh = Delaunay(points[ConvexHull(points).vertices])
        grid = np.stack(np.indices(silhouette.shape), axis=-1).reshape(-1, 2)
        return (mesh.find_simplex(grid) >= 0).reshape(silhouette.shape) | silhouette
    top, bottom, left, right = rows.min() - 1, rows.max() + 1, columns.min() - 1, columns.max() + 1
    y, x = np.indices(silhouette.shape)
    if kind == "box":
        return (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
    half_height, half_width = (bottom - top) / 2 + 1, (right - left) / 2 + 1
    return ((y - (top + bottom) / 2) / half_height) ** 2 + ((x - (left + right) / 2) / half_width) ** 2 <= 1


def edit_masks(edits: Sequence[Edit], kind: MaskKind) -> np.ndarray:
    """Return the masks of edits, float32 [n, 1, 32, 32]: 1 where the editor repaints."""
    return np.stack([~kept_region(edit.scene, kind) for edit in edits])[:, None].astype(np.float32)


def edit_success(images: np.ndarray, edits: Sequence[Edit]) -> np.ndarray:
    """Return which edits came out: one object of the right shape, colour and place on the wanted background.

    Args:
        images: Edited images, floats [n, 32, 32, 3] in [0, 1].
        edits: What was asked for.

    Returns:
        bool [n].
    """
    success = []
    for reading, edit in zip(read(images), edits, strict=True):
        item = edit.scene.objects[0]
        success.append(
            reading.background == edit.background
            and len(reading.objects) == 1
            and (reading.objects[0].shape, reading.objects[0].color) == (item.shape, item.color)
            and reading.objects[0].position == edit.scene.position
        )
    return np.array(success)
