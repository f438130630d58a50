"""Scaling of HDF5 datasets in robomimic's layout; needs the extra [hdf5]."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
from noiseworks.core.errors import InputError
from noiseworks.rti_dp.scaling import from_end, scale_actions


def scale_hdf5(source: Path, target: Path, dims: Sequence[int], factor: float) -> tuple[int, list[int]]:
    """Write a copy of a file whose `data/<demo>/actions` are divided by a factor on some dimensions.

    Everything is checked before anything is written, and the copy takes its name when it is complete.

    Args:
        source: The file.
        target: The copy.
        dims: Discrete dimensions; negative ones count from the last.
        factor: Above 0.

    Returns:
        The number of steps, and the dimensions.

    Raises:
        InputError: When the layout is another or a value is wrong.
    """
    scaled, found = {}, list(dims)
    with h5py.File(source, "r") as file:
        demos = file.get("data")
        if demos is None or not len(demos) or any("actions" not in demos[name] for name in demos):
            raise InputError(f"{source} is not in robomimic's layout: expected data/<demo>/actions")
        for name in demos:
            actions = demos[name]["actions"][()]
            found = from_end(dims, actions.shape[-1])
            scaled[name] = scale_actions(actions, found, factor)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            for name, actions in scaled.items():
                file[f"data/{name}/actions"][...] = actions
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return sum(map(len, scaled.values())), found
