"""Bodies, scenes and motions by path; pickles are never read."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError, first_line
from noiseworks.kits.motion.body import COUNT, JOINTS, OFFSETS, PARENTS, ROTATIONS, ProcBody, SkinnedBody
from noiseworks.kits.motion.rotations import matrices_of
from noiseworks.kits.motion.scenes import GridScene, Room, mesh_distance
from torch import Tensor

MARGIN, SIZE = 0.5, 64  # metres round a mesh; samples of its grid along an axis


def load_body(path: str | Path | None = None, markers: str | Path | None = None) -> ProcBody | SkinnedBody:
    """Return a body: without a path the synthetic one, else that of an .npz of SMPL-X's form.

    Args:
        path: File with v_template, posedirs, J_regressor, weights and kintree_table (betas stay 0).
        markers: JSON file {"markers": [vertices], "feet": [...], "buttocks": [...]}, the last two as positions in the
            first; without it every vertex is kept.

    Raises:
        InputError: When a file cannot be read or lacks a part.
    """
    if path is None:
        return ProcBody()
    names = ("v_template", "posedirs", "J_regressor", "weights", "kintree_table")
    found = _arrays(path, names)
    template, directions, regressor, weights, tree = (found[name] for name in names)
    parents = tuple(int(value) if 0 <= value < len(weights) else -1 for value in tree[0].astype(np.int64))
    chosen = {"markers": None, "feet": [], "buttocks": []}
    if markers is not None:
        try:
            chosen |= json.loads(Path(markers).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read markers from {markers}: {error}") from error
    tensors = [
        torch.as_tensor(part, dtype=torch.float32) for part in (template, directions, regressor, weights)
    ]
    kept = None if chosen["markers"] is None else tuple(chosen["markers"])
    return SkinnedBody(*tensors, (-1, *parents[1:]), kept, tuple(chosen["feet"]), tuple(chosen["buttocks"]))


def load_scene(path: str | Path) -> Room | GridScene:
    """Return a batch of one scene.

    Args:
        path: .json of a room ({"extent": [x, y], "boxes": [[7 numbers], ...]}), .npz of a grid (grid, centre, scale),
            or .obj of a closed mesh, z up, whose signed distance is taken on a grid.

    Raises:
        InputError: When the file cannot be read or is of another kind.
    """
    path = Path(path)
    if path.suffix == ".json":
        try:
            read = json.loads(path.read_text())
            boxes = torch.tensor(read["boxes"], dtype=torch.float32).reshape(1, -1, 7)
            return Room(
                torch.tensor(read["extent"], dtype=torch.float32)[None], boxes, float(read.get("floor", 0.0))
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path} holds no room with extent and boxes: {error}") from error
    if path.suffix == ".npz":
        found = _arrays(path, ("grid", "centre", "scale"))
        grid, centre, scale = (torch.as_tensor(part, dtype=torch.float32) for part in found.values())
        return GridScene(grid[None], centre[None], scale[None])
    if path.suffix == ".obj":
        return mesh_scene(*_obj(path))
    raise InputError(f"a scene is a .json, .npz or .obj file, got {path.name!r}")


def save_room(path: str | Path, room: Room) -> None:
    """Write one room as JSON that `load_scene` reads."""
    boxes = [box for box in room.boxes[0].tolist() if min(box[3:6]) > 0]
    atomic_write(
        Path(path), json.dumps({"extent": room.extent[0].tolist(), "boxes": boxes, "floor": room.floor})
    )


def mesh_scene(vertices: Tensor, faces: Tensor, size: int = SIZE) -> GridScene:
    """Return the signed distance of a closed mesh on a grid that reaches half a metre beyond it.

    Raises:
        InputError: When nothing lies inside the mesh.
    """
    low, high = vertices.amin(0), vertices.amax(0)
    centre, scale = (low + high) / 2, (high - low) / 2 + MARGIN
    axis = torch.linspace(-1, 1, size)
    cube = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    chunk = max(1, 4_000_000 // len(faces))
    found = mesh_distance(vertices, faces, (centre + scale * cube).reshape(-1, 3), chunk)
    if not bool((found < 0).any()):
        raise InputError("no point lies inside the mesh: it is not closed, or its faces are inverted")
    return GridScene(found.reshape(1, size, size, size), centre[None], scale[None])


def write_bvh(path: str | Path, motion: Tensor, fps: float) -> None:
    """Write a motion of the synthetic body as BVH, metres.

    Args:
        path: A file that ends in .bvh.
        motion: [F, 69].
        fps: Frames a second.

    Raises:
        InputError: When it ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".bvh":
        raise InputError(f"a BVH file ends in .bvh, got {path.name!r}")
    lines = ["HIERARCHY"]
    _joint_lines(0, 0, lines)
    lines += ["MOTION", f"Frames: {len(motion)}", f"Frame Time: {1 / fps:.6f}"]
    order = _order(0)
    angles = np.rad2deg(_zxy(matrices_of(motion[:, :ROTATIONS].double().unflatten(-1, (COUNT, 3)))))
    places = motion[:, ROTATIONS:] + torch.tensor(OFFSETS[0]).to(motion)
    for place, turn in zip(places.tolist(), angles, strict=True):
        numbers = [*place, *(value for joint in order for value in turn[joint])]
        lines.append(" ".join(f"{value:.6f}" for value in numbers))
    atomic_write(path, "\n".join(lines) + "\n")


def _zxy(matrices: Tensor) -> np.ndarray:
    """Return angles about z, x and y of rotations Rz Rx Ry, radians, [..., 3]."""
    m = matrices.numpy()
    x = np.arcsin(np.clip(m[..., 2, 1], -1, 1))
    return np.stack((np.arctan2(-m[..., 0, 1], m[..., 1, 1]), x, np.arctan2(-m[..., 2, 0], m[..., 2, 2])), -1)


def _children(joint: int) -> list[int]:
    return [other for other, parent in enumerate(PARENTS) if parent == joint]


def _order(joint: int) -> list[int]:
    return [joint, *(below for child in _children(joint) for below in _order(child))]


def _joint_lines(joint: int, depth: int, lines: list[str]) -> None:
    space, inner = "  " * depth, "  " * (depth + 1)
    turns = "Zrotation Xrotation Yrotation"
    channels = f"6 Xposition Yposition Zposition {turns}" if joint == 0 else f"3 {turns}"
    # Readers differ in whether they add the root's offset to its position: it is 0, and the position holds it.
    offset = " ".join(f"{value if joint else 0.0:.6f}" for value in OFFSETS[joint])
    lines += [
        f"{space}{'JOINT' if joint else 'ROOT'} {JOINTS[joint]}",
        f"{space}{{",
        f"{inner}OFFSET {offset}",
    ]
    lines.append(f"{inner}CHANNELS {channels}")
    children = _children(joint)
    for child in children:
        _joint_lines(child, depth + 1, lines)
    if not children:
        lines += [f"{inner}End Site", f"{inner}{{", f"{inner}  OFFSET 0 0 0", f"{inner}}}"]
    lines.append(f"{space}}}")


def _arrays(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}")
            return {name: file[name] for name in names}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def _obj(path: Path) -> tuple[Tensor, Tensor]:
    vertices, faces = [], []
    try:
        for line in path.read_text().splitlines():
            kind, *rest = line.split() or [""]
            if kind == "v":
                vertices.append([float(value) for value in rest[:3]])
            elif kind == "f":
                corners = [int(word.split("/")[0]) for word in rest]
                corners = [index - 1 if index > 0 else len(vertices) + index for index in corners]
                faces += [[corners[0], one, other] for one, other in pairwise(corners[1:])]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not faces or max(map(max, faces)) >= len(vertices):
        raise InputError(f"{path} holds no mesh: {len(vertices)} vertices, {len(faces)} triangles")
    return torch.tensor(vertices), torch.tensor(faces)
