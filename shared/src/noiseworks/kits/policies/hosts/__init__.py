"""Adapters that make other libraries' trained policies a `DenoiserHost`; none of them imports its library."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import CONFIG_NAME
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.core.models import resolve_model

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import DenoiserHost


def as_host(policy: Any) -> "DenoiserHost":
    """Return a policy as a host: one that is a host already, LeRobot's, or the original library's.

    Raises:
        UnsupportedHostError: When it has none of the known layouts.
    """
    from noiseworks.kits.policies.protocols import DenoiserHost

    if isinstance(policy, DenoiserHost):
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
    """Return the policy of a directory, a hub id or `testbed:<name>`.

    A directory of LeRobot's (its `config.json` says `"type": "diffusion"`) and hub ids need LeRobot installed.

    Args:
        name: What to load.
        device: Where the policy goes.

    Raises:
        ModelNotFoundError: When nothing is there.
        ArtifactError: When the directory is no policy.
    """
    from noiseworks.kits.policies.native import NativePolicy

    found = resolve_model(name)
    config = Path(found) / CONFIG_NAME
    foreign = not Path(found).is_dir()
    if config.is_file():
        record = json.loads(config.read_text())
        foreign = record.get("type") == "diffusion"
    if not foreign:
        return NativePolicy.from_pretrained(found, device=device)
    from noiseworks.kits.policies.hosts.lerobot import load_lerobot

    return load_lerobot(found, device)
