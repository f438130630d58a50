"""Adapters that make other libraries' trained policies a `DenoiserHost`; none of them imports its library."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import CONFIG_NAME, read_json
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
    if all(hasattr(policy, name) for name in ("noise_predictor", "observation_encoder", "objective")):
        from noiseworks.kits.policies.hosts.lerobot import MultiTaskHost

        return MultiTaskHost(policy, normalizer)
    if normalizer is not None:
        raise InputError(
            f"{type(policy).__name__} has its own normaliser; only LeRobot's policies take another"
        )
    if all(hasattr(policy, name) for name in _PARTS):
        return policy
    if hasattr(policy, "model") and hasattr(policy, "noise_scheduler"):
        from noiseworks.kits.policies.hosts.diffusion_policy import OriginalHost

        return OriginalHost(policy)
    if hasattr(policy, "model_ema") and hasattr(policy, "diffusion_steps"):
        raise UnsupportedHostError(
            f"{type(policy).__name__} does not say its time window: make the host with "
            "noiseworks.kits.policies.hosts.cleandiffuser.CleanDiffuserHost(agent, horizon=..., ...)"
        )
    raise UnsupportedHostError(
        f"{type(policy).__name__} is no diffusion policy that is known here: expected a host, LeRobot's "
        "DiffusionPolicy or MultiTaskDiTPolicy, or a policy of the diffusion_policy library"
    )


def load_host(name: str | Path, *, device: str = "cpu") -> "DenoiserHost":
    """Return the policy of a directory, `testbed:<name>` or an original library's checkpoint file.

    Args:
        name: A native policy's or LeRobot's directory, `testbed:<name>`, or a file ending in `.ckpt`.
        device: Where the policy goes.

    Raises:
        ModelNotFoundError: When nothing is there.
        ArtifactError: When the directory is no policy.
        UnsupportedHostError: When the policy is of a kind that is not supported, or LeRobot is not installed.
    """
    from noiseworks.kits.policies.native import NativePolicy

    if Path(name).suffix == ".ckpt" and Path(name).is_file():
        from noiseworks.kits.policies.hosts.checkpoint import import_checkpoint

        return import_checkpoint(name).to(device)
    found = Path(resolve_model(name))
    config = found / CONFIG_NAME
    if config.is_file() and read_json(config, "policy").get("type") == "diffusion":
        from noiseworks.kits.policies.hosts.lerobot import load_lerobot

        return load_lerobot(found, device=device)
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
