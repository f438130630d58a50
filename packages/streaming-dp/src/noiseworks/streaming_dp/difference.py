"""A fine-tuned policy as its difference to the converted host, in one byte a weight: small enough to ship."""

from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.policies import NativePolicy
from noiseworks.streaming_dp.hosts import StreamingHost, convert
from torch import Tensor

KIND = "streaming-dp/difference"


def save_difference(path: str | Path, tuned: StreamingHost, host: NativePolicy, **record: object) -> None:
    """Write what fine-tuning changed, in 8 bits with one scale a row.

    Args:
        path: The directory to make or replace.
        tuned: The fine-tuned conversion of `host`.
        host: The ordinary policy.
        record: Further JSON values for `config.json`, such as the number of steps.

    Raises:
        InputError: When `tuned` is no conversion of `host`.
    """
    # Buffers, such as a transformer's masks, do not change.
    base = dict(convert(host, n_action_steps=tuned.n_action_steps).net.named_parameters())
    state = dict(tuned.net.named_parameters())
    if {name: t.shape for name, t in base.items()} != {name: t.shape for name, t in state.items()}:
        raise InputError(
            "the tuned policy and the host differ in their sizes: it is no conversion of this host"
        )
    tensors: dict[str, Tensor] = {}
    for name, start in base.items():
        codes, scale = quantize_rows((state[name] - start).detach().float())
        tensors[f"{name}:codes"], tensors[f"{name}:scale"] = codes, scale
    save_artifact(path, KIND, {"n_action_steps": tuned.n_action_steps, **record}, tensors)


def load_difference(path: str | Path, host: NativePolicy) -> StreamingHost:
    """Return the fine-tuned policy of a difference to a host.

    Args:
        path: A directory of `save_difference`.
        host: The ordinary policy that it was fine-tuned from.

    Raises:
        ArtifactError: When the directory is corrupt or belongs to a host of other sizes.
    """
    record, tensors = load_artifact(path, KIND)
    made = convert(host, n_action_steps=record["n_action_steps"])
    parameters = dict(made.net.named_parameters())
    names = {name.removesuffix(":codes") for name in tensors if name.endswith(":codes")}
    if names != set(parameters):
        raise ArtifactError(f"the difference in {path} belongs to a policy of another network than this host")
    for name, tensor in parameters.items():
        change = tensors[f"{name}:codes"].float() * tensors[f"{name}:scale"].float()
        if change.shape != tensor.shape:
            raise ArtifactError(f"the difference in {path} does not fit this host: {name} has another shape")
        tensor.data.add_(change.to(tensor))
    return made


def quantize_rows(change: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes and a float32 scale for each row; codes times scale is within half a step of the change."""
    rows = change.reshape(len(change), -1) if change.ndim > 1 else change.reshape(1, -1)
    largest = rows.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    codes = (rows / scale[:, None]).round().to(torch.int8).reshape(change.shape)
    shape = (-1, *[1] * (change.ndim - 1)) if change.ndim > 1 else (1,)
    return codes, scale.reshape(shape)
