"""Clips and cases: of the testbed, or the user's."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.dip.options import CaseSet, Clipset
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.motion import Cases

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
