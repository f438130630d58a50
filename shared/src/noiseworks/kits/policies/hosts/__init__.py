"""Adapters that make other libraries' trained policies a `DenoiserHost`; none of them imports its library."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import CONFIG_NAME
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.models import resolve_model

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import ActionNormalizer, DenoiserHost
    from torch import nn

_PARTS = (
    "denoise",
    "encode",
    "scheduler",
    "normalizer",
    "horizon",
    "n_obs_steps",
    "n_action_steps",
    "action_dim",
)


def as_host(policy: Any, normalizer: "ActionNormalizer | None" = None) -> "DenoiserHost":
    """Return a policy as a host: one that is a host already, LeRobot's, or the original library's.

    Args:
        policy: The policy object.
        normalizer: Of the actions, for LeRobot's policies, which leave normalisation to their processors.

    Raises:
        InputError: When a normaliser is given for a policy that has its own.
        UnsupportedHostError: When it has none of the known layouts.
    """
    if hasattr(getattr(policy, "diffusion", None), "unet"):
        from noiseworks.kits.policies.hosts.lerobot import LeRobotHost

        return LeRobotHost(policy, normalizer)
    if normalizer is not None:
        raise InputError(
            f"{type(policy).__name__} has its own normaliser; only LeRobot's policies take another"
        )
    if all(hasattr(policy, name) for name in _PARTS):
        return policy
    if hasattr(policy, "model") and hasattr(policy, "noise_scheduler"):
        from noiseworks.kits.policies.hosts.diffusion_policy import OriginalHost

        return OriginalHost(policy)
    raise UnsupportedHostError(
        f"{type(policy).__name__} is no diffusion policy that is known here: expected a host, LeRobot's "
        "DiffusionPolicy or a policy of the diffusion_policy library"
    )


def load_host(name: str | Path, *, device: str = "cpu") -> "DenoiserHost":
    """Return the native policy of a directory or `testbed:<name>`.

    Args:
        name: What to load.
        device: Where the policy goes.

    Raises:
        ModelNotFoundError: When nothing is there.
        ArtifactError: When the directory is no policy.
        UnsupportedHostError: When the directory is LeRobot's, which its own library has to read.
    """
    from noiseworks.kits.policies.native import NativePolicy

    found = Path(resolve_model(name))
    config = found / CONFIG_NAME
    if config.is_file() and json.loads(config.read_text()).get("type") == "diffusion":
        raise UnsupportedHostError(
            f"{name} is a policy of LeRobot: load it with lerobot's DiffusionPolicy.from_pretrained and pass the "
            "policy itself"
        )
    return NativePolicy.from_pretrained(found, device=device)


def trained_network(host: "DenoiserHost") -> "nn.Module":
    """Return what trains of a host: a native policy's network; another library's whole policy, encoders as well.

    Raises:
        UnsupportedHostError: When the host holds no torch module.
    """
    from torch import nn

    for name in ("net", "policy", "model"):
        found = getattr(host, name, None)
        if isinstance(found, nn.Module):
            return found
    raise UnsupportedHostError(f"{type(host).__name__} holds no torch module that could be trained")
