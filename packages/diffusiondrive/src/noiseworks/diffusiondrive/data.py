"""Scenes of the testbed, or of the user's, as a planner's tables; anchors of files."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.core.artifacts import load_artifact
from noiseworks.core.errors import InputError
from noiseworks.diffusiondrive.options import ANCHORS, Denoising, SceneSet
from noiseworks.diffusiondrive.planner import Planner
from noiseworks.diffusiondrive.plans import Plans
from noiseworks.diffusiondrive.truncation import Normalizer, check_anchors
from noiseworks.kits.driving import Scenes
from noiseworks.kits.driving.scenes import NOTHING
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled

BATCH = 64
AGENTS = 12
NEEDS = "the scenes come from noiseworks-bench: pip install 'noiseworks-diffusiondrive[bench]'"


def scenes_of(
    which: SceneSet, progress: Callable[..., None] | None = None
) -> "tuple[Labelled, dict[str, Tensor]]":
    """Return labelled scenes, and what a planner learns from: `view`, `status`, `plan`, `agents`.

    Raises:
        InputError: When noiseworks-bench, which has the testbed, is not installed, or the user's files hold no scenes.
    """
    try:
        from noiseworks.bench.testbeds.drive import label, observe, read_folder
    except ImportError as error:
        raise InputError(NEEDS) from error
    labelled = (
        label(which.scene_seed, which.scenes, progress=progress)
        if which.data is None
        else read_folder(which.data)
    )
    view, status = observe(labelled.scenes, commanded=which.commanded)
    table = {
        "view": torch.as_tensor(view),
        "status": torch.as_tensor(status),
        "plan": torch.as_tensor(labelled.plans, dtype=torch.float32),
        "agents": agents_of(labelled.scenes),
    }
    return labelled, table


def agents_of(scenes: Scenes) -> Tensor:
    """Return the twelve nearest objects (x, y, heading, length, width, whether there is one), [B, 12, 6]."""
    now = np.concatenate((scenes.tracks[:, :, 0], scenes.sizes), axis=-1)
    real = scenes.kinds != NOTHING
    distance = np.where(real, np.linalg.norm(now[..., :2], axis=-1), np.inf)
    order = distance.argsort(axis=1)[:, :AGENTS]
    rows = np.arange(len(scenes))[:, None]
    near = np.where(np.isfinite(distance[rows, order]), real[rows, order], False)
    return torch.as_tensor(np.concatenate((now[rows, order], near[..., None]), axis=-1), dtype=torch.float32)


def read_anchors(path: str | Path, horizon: int = 8) -> Tensor:
    """Return the anchors [N, horizon, 2] of a folder that the verb anchors wrote, or of a .npy file.

    Raises:
        InputError: When they cannot be read, are of another horizon or not finite.
    """
    path = Path(path)
    if path.is_dir():
        found = load_artifact(path, ANCHORS)[1]["anchors"]
    else:
        try:
            found = torch.as_tensor(np.load(path, allow_pickle=False), dtype=torch.float64)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} holds no anchors: {error}") from error
    fits = found.ndim == 3 and found.shape[0] > 0 and found.shape[2] == 2
    return check_anchors(found, Normalizer.fit(found.numpy()) if fits else Normalizer.navsim(), horizon)


def plan_all(planner: Planner, table: dict[str, Tensor], denoising: Denoising) -> Plans:
    """Return the plans of all scenes of a table, in batches."""
    generator = torch.Generator().manual_seed(denoising.seed)
    parts = []
    for first in range(0, len(table["view"]), BATCH):
        rows = slice(first, first + BATCH)
        view = table["view"][rows].float() / 127
        parts.append(planner.plan(view, table["status"][rows], denoising, generator=generator))
    poses, scores = (torch.cat([getattr(part, name) for part in parts]) for name in ("poses", "scores"))
    return Plans(poses, scores, parts[0].calls)


def write_folder(folder: Path, seed: int, count: int, jobs: int, progress: Callable[..., None]) -> int:
    """Write scenes of the testbed as files, and return how many were made now; see its own `write_folder`.

    Raises:
        InputError: When noiseworks-bench is not installed.
    """
    try:
        from noiseworks.bench.testbeds import drive
    except ImportError as error:
        raise InputError(NEEDS) from error
    return drive.write_folder(folder, seed, count, jobs, progress)
