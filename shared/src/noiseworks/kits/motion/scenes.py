"""Scenes with signed distances (positive in free space, negative inside), and ways round their furniture.

`Room` is exact: walls and boxes that may be turned about z. `GridScene` samples a grid. Both answer for a
batch, one scene a motion: [B, ..., 3] -> [B, ...], with gradients.
"""

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from torch import Tensor


class Scene(Protocol):
    """What a method needs of a batch of scenes.

    Attributes:
        floor: Height of the floor, metres.
    """

    floor: float

    def distance(self, points: Tensor) -> Tensor:
        """Return signed distances [B, ...] of points [B, ..., 3] of the world."""
        ...

    def __getitem__(self, index: slice | Tensor) -> "Scene":
        """Return some of the scenes."""
        ...

    def __len__(self) -> int:
        """Return the number of scenes."""
        ...


@dataclass(frozen=True)
class Room:
    """Rectangular rooms with boxes that stand in them.

    Attributes:
        extent: Half widths along x and y of the rooms round the origin, [B, 2].
        boxes: Centre x, y, z, half widths x, y, z, and angle about z, [B, N, 7]; rows with a half width of 0 or less
            are padding.
        floor: Height of the floor, metres.
    """

    extent: Tensor
    boxes: Tensor
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.extent.shape != (len(self.boxes), 2) or self.boxes.ndim != 3 or self.boxes.shape[-1] != 7:
            raise InputError(
                f"a batch of rooms has extents [B, 2] and boxes [B, N, 7], got {list(self.extent.shape)} and "
                f"{list(self.boxes.shape)}"
            )
        if not bool((self.extent > 0).all()):
            raise InputError(f"a room's half widths must be above 0, got {self.extent.min():.3g}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: slice | Tensor) -> "Room":
        return Room(self.extent[index], self.boxes[index], self.floor)

    def distance(self, points: Tensor) -> Tensor:
        """Return signed distances [B, ...] of points [B, ..., 3], metres.

        The smallest over walls and boxes: exact in free space, and in furniture whose boxes do not touch.
        """
        flat = points.flatten(1, -2)
        return torch.minimum(self._walls(flat), self.furniture(flat)).reshape(points.shape[:-1])

    def furniture(self, points: Tensor) -> Tensor:
        """Return signed distances [B, P] of points [B, P, 3] from the boxes alone; infinity without boxes."""
        boxes = self.boxes.to(points)[:, :, None]
        delta = points[:, None] - boxes[..., :3]
        cosine, sine = boxes[..., 6].cos(), boxes[..., 6].sin()
        own = torch.stack(
            (
                cosine * delta[..., 0] + sine * delta[..., 1],
                cosine * delta[..., 1] - sine * delta[..., 0],
                delta[..., 2],
            ),
            -1,
        )
        apart = _box_distance(own.abs() - boxes[..., 3:6])
        apart = apart.masked_fill((boxes[..., 3:6] <= 0).any(-1), torch.inf)
        return apart.amin(1) if apart.shape[1] else apart.new_full(points.shape[:2], torch.inf)

    def _walls(self, points: Tensor) -> Tensor:
        return -_box_distance(points[..., :2].abs() - self.extent.to(points)[:, None])

    def padded(self, count: int) -> "Room":
        """Return the rooms with rows of padding, so that there are `count` boxes each."""
        return Room(self.extent, F.pad(self.boxes, (0, 0, 0, count - self.boxes.shape[1])), self.floor)


def _box_distance(beyond: Tensor) -> Tensor:
    """Return the distance from a box of points that lie `beyond` its faces [..., D]; the square root is smooth at 0."""
    outside = beyond.clamp(min=0)
    square = outside.square().sum(-1)
    out = square > 0
    length = torch.where(out, square, torch.ones_like(square)).sqrt()
    return torch.where(out, length, beyond.amax(-1).clamp(max=0))


@dataclass(frozen=True)
class GridScene:
    """Signed distances on grids, sampled trilinearly; beyond the grid the distance to its box is added.

    Attributes:
        grid: [B, X, Y, Z].
        centre: Of the grids, [B, 3].
        scale: Metres from the centre to the outermost samples, [B] (released scenes) or [B, 3].
        floor: Height of the floor, metres.
    """

    grid: Tensor
    centre: Tensor
    scale: Tensor
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.grid.ndim != 4 or min(self.grid.shape[1:]) < 2:
            raise InputError(f"a grid of distances is [B, X, Y, Z], got {list(self.grid.shape)}")
        if not bool((self.scale > 0).all()):
            raise InputError(f"the scale of a grid must be above 0, got {self.scale.min():.3g}")
        if not bool(self.grid.isfinite().all()):
            raise InputError("the grid holds NaN or infinity")
        corners = self.grid[:, [0, 0, -1, -1], [0, -1, 0, -1], -1]
        if not bool((corners > 0).any(1).all()):
            raise InputError(
                "all upper corners of a grid lie inside something: is the sign of its distances inverted?"
            )

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: slice | Tensor) -> "GridScene":
        return GridScene(self.grid[index], self.centre[index], self.scale[index], self.floor)

    def distance(self, points: Tensor) -> Tensor:
        """Return signed distances [B, ...] of points [B, ..., 3], metres."""
        flat = points.flatten(1, -2)
        scale = self.scale.to(points).reshape(len(self), -1)[:, None]
        place = (flat - self.centre.to(points)[:, None]) / scale
        inside = place.clamp(-1, 1)
        # The sampler reads coordinates from the last axis to the first.
        where = inside.flip(-1)[:, :, None, None]
        grid = self.grid.to(points)[:, None]
        found = F.grid_sample(grid, where, padding_mode="border", align_corners=True)[:, 0, :, 0, 0]
        beyond = ((place - inside) * scale).square().sum(-1)
        out = beyond > 0
        far = torch.where(out, beyond, torch.ones_like(beyond)).sqrt()
        return (found + torch.where(out, far, torch.zeros_like(far))).reshape(points.shape[:-1])


def rasterise(scene: Scene, centre: Tensor, scale: Tensor, size: int = 64) -> GridScene:
    """Return scenes as grids of `size` samples along each axis.

    Args:
        scene: B scenes.
        centre: [B, 3].
        scale: Half width of the cubes, metres, [B].
        size: Samples along an axis.
    """
    axis = torch.linspace(-1, 1, size, dtype=centre.dtype)
    cube = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    points = centre[:, None, None, None] + scale[:, None, None, None, None] * cube
    return GridScene(scene.distance(points), centre, scale, scene.floor)


def mesh_distance(vertices: Tensor, faces: Tensor, points: Tensor, chunk: int = 2048) -> Tensor:
    """Return signed distances of points from a closed triangle mesh, [P]; exact, by all pairs.

    The distance is that to the nearest triangle, the sign that of the winding number (sum of solid angles).

    Args:
        vertices: [V, 3].
        faces: Indices, counterclockwise from outside, [T, 3].
        points: [P, 3].
        chunk: Points that are done together.
    """
    corners = vertices[faces]  # [T, 3, 3]
    found = [_mesh_part(corners, part) for part in points.split(chunk)]
    return torch.cat(found)


def _mesh_part(corners: Tensor, points: Tensor) -> Tensor:
    a, b, c = (corners[None, :, i] - points[:, None] for i in range(3))  # [P, T, 3]
    ab, ac = b - a, c - a
    normal = torch.linalg.cross(ab, ac)
    area = normal.square().sum(-1).clamp(min=1e-30)
    # Barycentric coordinates of the foot of the perpendicular; where it lies outside, the nearest point is on an edge.
    v = (torch.linalg.cross(-a, ac) * normal).sum(-1) / area
    w = (torch.linalg.cross(ab, -a) * normal).sum(-1) / area
    plane = (a * normal).sum(-1).square() / area
    edges = torch.stack([_edge_distance(*pair) for pair in ((a, b), (b, c), (c, a))]).amin(0)
    square = torch.where((v >= 0) & (w >= 0) & (v + w <= 1), plane, edges).amin(1)
    la, lb, lc = (x.norm(dim=-1) for x in (a, b, c))
    volume = (a * torch.linalg.cross(b, c)).sum(-1)
    denominator = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    winding = torch.atan2(volume, denominator).sum(1) / (2 * torch.pi)
    return torch.where(winding > 0.5, -1.0, 1.0) * square.sqrt()


def _edge_distance(start: Tensor, end: Tensor) -> Tensor:
    along = end - start
    share = (-(start * along).sum(-1) / along.square().sum(-1).clamp(min=1e-30)).clamp(0, 1)
    return (start + share[..., None] * along).square().sum(-1)


def find_path(
    scene: Scene,
    start: tuple[float, float],
    goal: tuple[float, float],
    *,
    clearance: float = 0.3,
    cell: float = 0.1,
) -> np.ndarray:
    """Return a short way over the floor of one scene: corners [N, 2] from start to goal (A*, then straightened).

    Args:
        scene: A batch of one.
        start: x, y.
        goal: x, y.
        clearance: Metres to furniture and walls, of every point up to knee height.
        cell: Metres between the points that are tried.

    Raises:
        InputError: When start or goal is inside something, or there is no way.
    """
    for name, (x, y) in (("start", start), ("goal", goal)):
        room = float(floor_distance(scene, np.array([[x, y]]))[0])
        if not room > 0:
            raise InputError(
                f"the {name} ({x:.2f}, {y:.2f}) lies inside a wall or furniture, by {-room:.2f} m"
            )
    ends = np.array((start, goal), dtype=np.float64)
    low, high = ends.min(0) - 3, ends.max(0) + 3
    size = np.ceil((high - low) / cell).astype(int) + 1
    grid = low + cell * np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    free = floor_distance(scene, grid.reshape(-1, 2)).reshape(size) >= clearance
    first, last = (tuple(np.rint((end - low) / cell).astype(int)) for end in ends)
    free[first] = free[last] = True
    cells = _a_star(free, first, last)
    if cells is None:
        raise InputError(f"no way from {start} to {goal} keeps {clearance} m from furniture and walls")
    path = np.array([ends[0], *(low + cell * np.array(one) for one in cells[1:-1]), ends[1]])
    return _straightened(path, scene, clearance)


def floor_distance(scene: Scene, places: np.ndarray) -> np.ndarray:
    """Return the smallest signed distance [P] over a column up to 1 m above places [P, 2] of one scene's floor."""
    heights = scene.floor + torch.tensor([0.05, 0.25, 0.5, 0.75, 1.0])
    spots = torch.as_tensor(places, dtype=torch.float32)[:, None].expand(-1, len(heights), -1)
    points = torch.cat((spots, heights.expand(len(places), -1)[..., None]), -1)
    return scene.distance(points[None])[0].amin(-1).numpy()


def _a_star(free: np.ndarray, first: tuple[int, int], last: tuple[int, int]) -> list[tuple[int, int]] | None:
    moves = [(i, j, float(np.hypot(i, j))) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    queue, cost, before = [(0.0, first)], {first: 0.0}, {}
    while queue:
        _, here = heapq.heappop(queue)
        if here == last:
            way = [here]
            while way[-1] in before:
                way.append(before[way[-1]])
            return way[::-1]
        for i, j, length in moves:
            there = (here[0] + i, here[1] + j)
            if not (0 <= there[0] < free.shape[0] and 0 <= there[1] < free.shape[1]) or not free[there]:
                continue
            total = cost[here] + length
            if total < cost.get(there, np.inf):
                cost[there], before[there] = total, here
                heapq.heappush(
                    queue, (total + float(np.hypot(there[0] - last[0], there[1] - last[1])), there)
                )
    return None


def _straightened(path: np.ndarray, scene: Scene, clearance: float) -> np.ndarray:
    """Return the corners that are left when every stretch that keeps its clearance is walked straight."""
    kept, index = [0], 0
    while index < len(path) - 1:
        reach = index + 1
        for other in range(len(path) - 1, index + 1, -1):
            count = max(2, int(np.linalg.norm(path[other] - path[index]) / 0.05))
            between = np.linspace(path[index], path[other], count)[1:-1]
            if not len(between) or (floor_distance(scene, between) >= clearance).all():
                reach = other
                break
        kept.append(reach)
        index = reach
    return path[kept]


def length_of(path: np.ndarray) -> float:
    """Return the length of a way [N, 2]."""
    return float(sum(np.linalg.norm(end - start) for start, end in pairwise(path)))
