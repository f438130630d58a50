"""Bases and on-the-fly policies as artifacts."""

from dataclasses import asdict
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.errors import InputError
from noiseworks.expo.base import BasePolicy, GenerativeBase
from noiseworks.expo.editing import EditPolicy
from noiseworks.expo.on_the_fly import OnTheFlyPolicy
from noiseworks.expo.options import BaseSizes, Proposals
from noiseworks.kits.rl.networks import Critics

BASE_KIND, POLICY_KIND = "expo/base", "expo/policy"


def save_base(path: str | Path, base: GenerativeBase) -> None:
    """Write a base."""
    save_artifact(path, BASE_KIND, _base_config(base), base.state_dict())


def load_base(path: str | Path) -> GenerativeBase:
    """Read a base that `save_base` wrote.

    Raises:
        ArtifactError: When it is missing, incomplete or of another kind.
    """
    config, tensors = load_artifact(path, BASE_KIND)
    with rebuilding(path, "whole base"):
        base = _build(config)
        base.load_state_dict(tensors)
    return base.eval().requires_grad_(False)


def save_policy(path: str | Path, policy: OnTheFlyPolicy) -> None:
    """Write an on-the-fly policy; a host's own weights are not written, they are named when it is loaded."""
    own = isinstance(policy.base, GenerativeBase)
    first = policy.critics.layers[0].weight.shape
    config = {
        "base": _base_config(policy.base) if own else None,
        "proposals": asdict(policy.proposals),
        "subset": policy.subset,
        "critics": policy.critics.members,
        "hidden": first[2],
        "layers": len(policy.critics.layers) - 1,
    }
    tensors = {k: v for k, v in policy.state_dict().items() if own or not k.startswith("base.")}
    save_artifact(path, POLICY_KIND, config, tensors)


def load_policy(path: str | Path, base: BasePolicy | None = None, seed: int = 0) -> OnTheFlyPolicy:
    """Read an on-the-fly policy.

    Args:
        path: The folder.
        base: The base, where it is a host's policy.
        seed: Of its draws.

    Raises:
        ArtifactError: When it is missing, incomplete, of another kind, or needs a base.
    """
    config, tensors = load_artifact(path, POLICY_KIND)
    with rebuilding(path, "whole policy"):
        if config["base"] is None and base is None:
            raise InputError("it edits another library's policy: name that too")
        base = _build(config["base"]) if config["base"] is not None else base
        values = config["proposals"]
        proposals = Proposals(**{**values, "masked": values["masked"] and tuple(values["masked"])})
        sizes = (config["hidden"], config["layers"])
        edit = EditPolicy(
            base.obs_dim, base.action_dim, proposals.edit_scale, proposals.masked or (), base.chunk, sizes
        )
        critics = Critics(base.obs_dim, base.action_dim, config["critics"], *sizes, layer_norm=True)
        policy = OnTheFlyPolicy(base, edit, critics, proposals, config["subset"])
        policy.load_state_dict(tensors, strict=config["base"] is not None)
    policy.generator = torch.Generator().manual_seed(seed)
    return policy.eval().requires_grad_(False)


def _base_config(base: GenerativeBase) -> dict[str, object]:
    return {"obs_dim": base.obs_dim, "action_dim": base.action_dim // base.chunk, "sizes": asdict(base.sizes)}


def _build(config: dict) -> GenerativeBase:
    return GenerativeBase(config["obs_dim"], config["action_dim"], BaseSizes(**config["sizes"]))
