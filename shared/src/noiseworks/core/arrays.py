"""Reading a user's `.npz` and `.npy` files: nothing pickled is loaded, and what cannot be read is refused in a line."""

from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from noiseworks.core.errors import InputError

_DAMAGE = (OSError, ValueError, EOFError, KeyError, BadZipFile, ZlibError)


def read_arrays(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file.

    Args:
        path: The file.
        names: Arrays that it must hold; only these are read. All of them without names.

    Raises:
        InputError: When it is missing, damaged, no npz file, holds pickled objects or lacks an array.
    """
    path = Path(path)
    wanted = f"an npz file with {', '.join(names)}" if names else "an npz file"
    if not path.is_file():
        raise InputError(f"no file at {path}: name {wanted}")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file.files
            missing = [name for name in names if name not in found]
            if not missing:
                return {name: file[name] for name in names or found}
    except (*_DAMAGE, AttributeError, TypeError) as error:  # a lone array is no context manager
        raise InputError(
            f"{path} cannot be read as {wanted} of plain arrays ({_first_line(error)})"
        ) from error
    raise InputError(f"{path} lacks the arrays {', '.join(missing)}; it has {', '.join(found) or 'none'}")


def read_array(path: str | Path, *, on_disk: bool = False) -> np.ndarray:
    """Return the array of an npy file.

    Args:
        path: The file.
        on_disk: Whether it stays on disk, as a memory map.

    Raises:
        InputError: When it is missing, damaged, no npy file or holds pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}: name an npy file")
    try:
        found = np.load(path, mmap_mode="r" if on_disk else None, allow_pickle=False)
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be read as an npy file ({_first_line(error)})") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path} holds several arrays, expected an npy file with one")
    return found


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
