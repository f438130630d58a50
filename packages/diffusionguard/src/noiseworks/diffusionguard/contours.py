"""Mask augmentation by contour shrinking: an editor's mask is never the defender's, so smaller ones are drawn.

A component of area A has r = sqrt(A pi / 2), as in the released code (2.22 times the radius of a disc of that area). A
draw takes u ~ U(0, r), e = floor(u * strength), n ~ 1 ... iterations - 1, and n times moves the vertices of the largest
outer contour by whole numbers of -e ... e that are smoothed along the contour; vertices that leave the region go back
to the nearest old one; the new region is the filled polygon inside the old one. Source: arXiv 2410.05694, section 4.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import contourpy
import numpy as np
from noiseworks.core.errors import InputError
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import cKDTree

SMALLEST = 5  # pixels; what is smaller is not shrunk


def reference_radius(area: float) -> float:
    """Return r = sqrt(A pi / 2): 125.3314 for 10,000 pixels."""
    return math.sqrt(area * math.pi / 2)


def disc_radius(area: float) -> float:
    """Return sqrt(A / pi): 56.4190 for 10,000 pixels."""
    return math.sqrt(area / math.pi)


@dataclass(frozen=True)
class ContourShrink:
    """How masks are shrunk.

    Attributes:
        strength: How far vertices move, relative to u.
        iterations: Rounds are fewer than this.
        smoothness: Standard deviation of the smoothing along the contour, relative to r.
        size: Longest side at which masks are shrunk: vertices are whole pixels, so small masks are enlarged first.
        disc: Whether r is the radius of a disc of the same area.
    """

    strength: float = 1.1
    iterations: int = 15
    smoothness: float = 0.1
    size: int = 512
    disc: bool = False

    def sample(self, keep: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return shrunk regions, bool [count, H, W], each inside `keep`.

        Args:
            keep: The sensitive region, bool [H, W]; its connected components are shrunk one by one.
            count: How many.
            seed: Of the draws.

        Raises:
            InputError: When the region is empty.
        """
        if not keep.any():
            raise InputError("the mask keeps nothing: mark what is to be protected")
        scale = max(1, round(self.size / max(keep.shape)))
        large = keep.repeat(scale, axis=0).repeat(scale, axis=1)
        labels, parts = ndimage.label(large, structure=np.ones((3, 3)))
        components = [labels == part for part in range(1, parts + 1)]
        rng = np.random.default_rng(seed)
        found = np.stack([self._union(components, scale, rng) for _ in range(count)])
        return found & keep

    def _union(self, components: Sequence[np.ndarray], scale: int, rng: np.random.Generator) -> np.ndarray:
        height, width = (side // scale for side in components[0].shape)
        union = np.zeros((height, width), bool)
        for component in components:
            shares = self.shrink(component, rng).reshape(height, scale, width, scale).mean(axis=(1, 3))
            # Less than half a pixel of the mask is left of some: it is the pixel that shows most of it.
            union |= shares >= min(0.5, shares.max())
        return union

    def shrink(self, component: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return one component, bool [H, W], after a draw; as it was when nothing would be left of it."""
        area = int(component.sum())
        if area < SMALLEST:
            return component
        radius = disc_radius(area) if self.disc else reference_radius(area)
        reach = int(rng.uniform(0, radius) * self.strength)
        rounds = int(rng.uniform(1, self.iterations))
        lines = [np.flatnonzero(component.any(axis=axis)) for axis in (1, 0)]
        window = tuple(slice(line[0], line[-1] + 1) for line in lines)  # nothing outside of it can be reached
        region = component[window]
        for _ in range(rounds):
            vertices = largest_contour(region)
            if len(vertices) < 3:  # a pixel or two, which cannot shrink
                break
            moved = self._moved(vertices, reach, self.smoothness * radius, region, rng)
            region = filled(moved, region.shape) & region
            if not region.any():
                return component
        shrunk = np.zeros_like(component)
        shrunk[window] = region
        return shrunk

    @staticmethod
    def _moved(
        vertices: np.ndarray, reach: int, sigma: float, region: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        offsets = rng.integers(-reach, reach + 1, vertices.shape)
        if sigma > 0:
            offsets = ndimage.gaussian_filter1d(offsets, sigma, axis=0, mode="reflect")
        moved = vertices + offsets
        inside = ((moved >= 0) & (moved < region.shape[::-1])).all(axis=1)
        inside[inside] = region[moved[inside, 1], moved[inside, 0]]
        if not inside.all():
            nearest = cKDTree(vertices).query(moved[~inside])[1]
            moved[~inside] = vertices[nearest]
        return moved


def largest_contour(region: np.ndarray) -> np.ndarray:
    """Return the vertices (x, y) of the outer contour with the largest area, int [m, 2]; straight runs keep their ends.

    Args:
        region: bool [H, W].
    """
    padded = np.pad(region, 1)
    lines = contourpy.contour_generator(z=padded.astype(np.float32)).lines(0.5)
    if not lines:
        return np.zeros((0, 2), np.int64)
    largest = max(lines, key=lambda line: abs(_area(line)))
    # Each point lies between a pixel of the region and one outside of it: the former is on the border.
    low, high = np.floor(largest).astype(np.int64), np.ceil(largest).astype(np.int64)
    points = np.where(padded[low[:, 1], low[:, 0]][:, None], low, high) - 1
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    if len(points) < 3:
        return points
    ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
    return points[np.any(ahead != behind, axis=1)]


def _area(line: np.ndarray) -> float:
    x, y = line.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def filled(vertices: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the inside of a polygon with its border, bool [H, W]."""
    image = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon([tuple(map(int, point)) for point in vertices], fill=1, outline=1)
    return np.asarray(image)
