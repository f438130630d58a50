"""Adapters that make other libraries' trained policies a `DenoiserHost`; none of them imports its library."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import CONFIG_NAME
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.core.models import resolve_model

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import DenoiserHost

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


def as_host(policy: Any) -> "DenoiserHost":
    """Return a policy as a host: one that is a host already, LeRobot's, or the original library's.

    Raises:
        UnsupportedHostError: When it has none of the known layouts.
    """
    if all(hasattr(policy, name) for name in _PARTS):
        return policy
    if hasattr(getattr(policy, "diffusion", None), "unet"):
        from noiseworks.kits.policies.hosts.lerobot import LeRobotHost

        return LeRobotHost(policy)
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
