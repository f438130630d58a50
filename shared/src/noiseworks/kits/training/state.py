"""Checkpoints that are replaced as a whole, random states of all processes, and the search for NaN."""

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError, first_line
from torch import Tensor, nn

_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)


def replace_checkpoint(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, bring it to disk and rename it, so that `path` is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values as a checkpoint."""
    replace_checkpoint(path, lambda part: torch.save(dict(state), part))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; no pickled code is run.

    Raises:
        ArtifactError: When the file is corrupt or no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = first_line(error)
        raise ArtifactError(
            f"the checkpoint {path} cannot be read ({reason}); begin the run anew in another folder"
        ) from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{path} is no checkpoint of a training run; name another folder")
    return state


def load_parameters(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into the trainable parameters of a module, whose names and shapes must all be there.

    Raises:
        InputError: Naming the first parameter that is missing, unexpected or of another shape.
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name in sorted(own.keys() ^ state.keys()):
        raise InputError(f"{what} {'lacks' if name in own else 'has the unexpected tensor'} {name!r}")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(parameter.shape)}"
                raise InputError(f"{what} has {name!r} in the shape {shapes}")
            parameter.copy_(state[name])


def random_state(device: torch.device) -> Tensor:
    """Return the state of this process's global random generators, uint8 [n]: the CPU's, then the GPU's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Set what `random_state` returned; a GPU's part is left out on another kind of device."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:], device)


def refuse_non_finite(tensors: Iterator[tuple[str, Tensor]], step: int, kept: str) -> None:
    """Stop a run whose state holds NaN or infinity.

    Args:
        tensors: Name and tensor; whole numbers are passed over.
        step: Steps done, for the message.
        kept: What became of the last checkpoint, for the message.

    Raises:
        NonFiniteError: Naming the first such tensor and the step.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{name} is not finite at step {step}; {kept}")


def tensors_of(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Go through the tensors of nested mappings and sequences, each with its path as its name."""
    if isinstance(state, Tensor):
        yield prefix, state
        return
    if isinstance(state, Mapping):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return
    for key, value in items:
        yield from tensors_of(value, f"{prefix}.{key}" if prefix else str(key))


def kept_sentence(step: int | None, folder: Path | None) -> str:
    """Return what became of the last checkpoint."""
    if folder is None:
        return "nothing was kept"
    if step is None:
        return "no checkpoint had been written"
    return f"the checkpoint of step {step} stays in {folder}"
