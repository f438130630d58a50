"""Choice of device and of the numeric precision."""

from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str = "auto") -> "torch.device":
    """Return the device: `auto` means CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: When the named device is unknown or not present.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:<n> or mps") from error
    if found.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:<n> or mps")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' is not present; use cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} is not present ({torch.cuda.device_count()} CUDA devices found); use cpu"
        )
    return found


def resolve_dtype(dtype: str) -> "torch.dtype":
    """Return the torch dtype of a name in `DTYPES`.

    Raises:
        InputError: When the name is unknown.
    """
    import torch

    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return getattr(torch, dtype)
