"""Scenes as .npz files: one array a field of `Scenes`, and whatever else belongs to each scene."""

import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.kits.driving.scenes import Scenes

FIELDS = tuple(field.name for field in fields(Scenes))


def write_scenes(path: str | Path, scenes: Scenes, others: Mapping[str, np.ndarray] | None = None) -> None:
    """Write scenes, and further arrays of one row a scene, such as `plans` [B, 8, 3]; the file is whole or not there.

    Args:
        path: File that ends in .npz.
        scenes: What is written.
        others: Name -> array [B, ...].
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(scenes, name) for name in FIELDS}, **(others or {}))
    atomic_write(Path(path), buffer.getvalue())


def read_scenes(path: str | Path) -> tuple[Scenes, dict[str, np.ndarray]]:
    """Return the scenes of a file, and its other arrays.

    Raises:
        InputError: When it cannot be read, an array is missing or of another length, or a scene cannot be scored.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path} holds no scenes: {error}") from error
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise InputError(f"{path} holds no scenes: it lacks {', '.join(missing)}")
    count = len(np.atleast_1d(found["speed"]))
    short = [name for name, array in found.items() if len(np.atleast_1d(array)) != count]
    if short:
        raise InputError(
            f"{path} has {count} scenes, but {short[0]} has {len(np.atleast_1d(found[short[0]]))} rows"
        )
    scenes = Scenes(**{name: found.pop(name) for name in FIELDS})
    try:
        scenes.check()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return scenes, found
