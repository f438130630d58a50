"""Clips and cases: of the testbed, or the user's."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.core.artifacts import read_json
from noiseworks.core.errors import InputError
from noiseworks.dip.options import CaseSet, Clipset
from noiseworks.kits.motion import Frame
from noiseworks.kits.motion.body import NUMBERS, ROTATIONS
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.motion import Cases
    from noiseworks.dip.agent import Waypoint
    from noiseworks.kits.motion.body import BodyModel

STANDING = (0.0, math.pi / 2**0.5, math.pi / 2**0.5)  # half a turn: upright, looking along +y
NEEDS = "clips and cases come from noiseworks-bench: pip install 'noiseworks-dip[bench]'"


def clips_of(which: Clipset) -> dict[str, Tensor]:
    """Return `motion` [N, F, 69] and `actions` [N] to learn from.

    Raises:
        InputError: When a file cannot be read, or noiseworks-bench, which has the testbed, is not installed.
    """
    if which.data is not None:
        return read_clips(which.data)
    try:
        from noiseworks.bench.testbeds.motion import draw_clips
    except ImportError as error:
        raise InputError(NEEDS) from error
    clips = draw_clips(which.clip_seed, which.clips, kinds=which.kinds.split(","))
    return {"motion": clips.motion, "actions": clips.actions}


def read_clips(path: str | Path) -> dict[str, Tensor]:
    """Return the clips of an .npz with `motion` and `actions`.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {
                "motion": torch.as_tensor(file["motion"], dtype=torch.float32),
                "actions": torch.as_tensor(file["actions"], dtype=torch.int64),
            }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no motion and actions: {error}") from error


def cases_of(which: CaseSet) -> "Cases":
    """Return the cases of the testbed.

    Raises:
        InputError: When noiseworks-bench is not installed.
    """
    try:
        from noiseworks.bench.testbeds.motion import draw_cases
    except ImportError as error:
        raise InputError(NEEDS) from error
    return draw_cases(which.case_seed, which.cases, clearance=which.clearance)


def read_plan(path: str | Path) -> tuple[tuple[float, float], list["Waypoint"]]:
    """Return where a plan's body stands, x and y, and its waypoints.

    Args:
        path: JSON {"start": [x, y], "waypoints": [{"place": [x, y, z], "action": "walk"}, ...]}, as `plan` writes it; z
            is the pelvis's and not read for walks.

    Raises:
        InputError: When it cannot be read, or an action is unknown.
    """
    from noiseworks.dip.agent import Waypoint

    read = read_json(path, "plan")
    try:
        x, y = (float(value) for value in read["start"])
        points = []
        for one in read["waypoints"]:
            place = [float(value) for value in one["place"]]
            points.append(Waypoint((*place, 0.0)[:3], one.get("action", "walk")))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no plan with start and waypoints: {error!r}") from error
    return (x, y), points


def opening(
    body: "BodyModel", start: tuple[float, float], towards: tuple[float, float], frames: int = 10
) -> Tensor:
    """Return frames of standing with hanging arms, in the world, [1, frames, 69].

    Args:
        body: Whose lowest foot marker stands on the floor, at height 0.
        start: x, y.
        towards: x, y that it looks at.
        frames: How many.
    """
    pose = torch.zeros(1, frames, NUMBERS)
    pose[..., 3 * 16 + 2], pose[..., 3 * 17 + 2] = -1.3, 1.3
    pose[..., :3] = torch.tensor(STANDING)
    pose[..., ROTATIONS:] -= body.root
    feet = body(pose)[1][0, 0, list(body.foot_markers), 2].min()
    x, y = towards[0] - start[0], towards[1] - start[1]
    turn = torch.tensor(math.atan2(-x, y))
    rotation = torch.tensor(
        [[[turn.cos(), -turn.sin(), 0.0], [turn.sin(), turn.cos(), 0.0], [0.0, 0.0, 1.0]]]
    )
    return Frame(rotation, torch.tensor([[*start, -float(feet)]])).motion_to_world(pose, body.root)
