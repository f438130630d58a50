"""Motions in their rooms, as files."""

import io
from pathlib import Path

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.dip.agent import Motion
from noiseworks.kits.motion import ProcBody, film_motion, write_bvh
from noiseworks.kits.motion.body import ROTATIONS, BodyModel
from noiseworks.kits.motion.scenes import Scene
from noiseworks.kits.pictures import film
from noiseworks.kits.policies.video import write_video


def films(
    motions: list[Motion], scenes: Scene | None, body: BodyModel, path: Path, *, columns: int = 2
) -> None:
    """Write motions side by side as one animated WebP.

    Args:
        motions: In the world.
        scenes: One each, or None.
        body: The body.
        path: A file that ends in .webp.
        columns: In a row.
    """
    shown = [frames_of(one, scenes, index, body) for index, one in enumerate(motions)]
    height = max(frames[0].shape[0] for frames in shown)
    padded = [
        np.stack([np.pad(f, ((0, height - len(f)), (0, 0), (0, 0)), constant_values=255) for f in frames])
        for frames in shown
    ]
    write_video(film(padded, columns=columns), path)


def frames_of(motion: Motion, scenes: Scene | None, index: int, body: BodyModel) -> list[np.ndarray]:
    """Return pictures of one motion with its waypoints."""
    goals = np.array([point.place for point in motion.plan], dtype=float)
    goals[[point.action == "walk" for point in motion.plan], 2] = 0.0
    scene = None if scenes is None else scenes[index : index + 1]
    return film_motion(body(motion.frames)[0].numpy(), scene, goals)


def write_motion(
    motion: Motion, scenes: Scene | None, index: int, body: BodyModel, path: Path, fps: float
) -> None:
    """Write a motion: numbers (.npz, the .bvh of the synthetic body) and a film (.webp) beside each other.

    The .npz has SMPL-X's parameters (`global_orient`, `body_pose`, `transl`) and `joints`.

    Args:
        motion: In the world.
        scenes: The batch's scenes, or None.
        index: Of this motion's scene.
        body: The body.
        path: Path of the .npz; it is written last, so that where it stands the others do.
        fps: Frames a second.
    """
    write_video(frames_of(motion, scenes, index, body), path.with_suffix(".webp"))
    frames = motion.frames.numpy()
    if isinstance(body, ProcBody):
        write_bvh(path.with_suffix(".bvh"), motion.frames, fps)
    arrays = {
        "global_orient": frames[:, :3],
        "body_pose": frames[:, 3:ROTATIONS],
        "transl": frames[:, ROTATIONS:],
        "joints": body(motion.frames)[0].numpy(),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(path, buffer.getvalue())
