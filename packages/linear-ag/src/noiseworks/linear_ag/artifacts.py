"""Saving and loading guidance policies."""

from dataclasses import asdict
from pathlib import Path

from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.linear_ag.policies import (
    AdaptiveGuidance,
    FixedPolicy,
    GuidancePolicy,
    IntervalGuidance,
    ReuseGuidance,
)
from torch import Tensor

KIND = "linear-ag/policy"
_CLASSES = {cls.__name__: cls for cls in (AdaptiveGuidance, FixedPolicy, IntervalGuidance, ReuseGuidance)}


def save_policy(path: str | Path, policy: GuidancePolicy, gamma: Tensor | None = None) -> None:
    """Write a policy to a directory, atomically.

    Args:
        path: The directory to make or replace.
        policy: One of the policies without tensors; LinearAG's coefficients have their own `save_pretrained`.
        gamma: The similarities that it was chosen on, kept for the record.

    Raises:
        InputError: When the policy is of another kind.
    """
    name = type(policy).__name__
    if name not in _CLASSES:
        raise InputError(f"a {name} cannot be saved; supported: {', '.join(_CLASSES)}")
    tensors = {} if gamma is None else {"gamma": gamma}
    save_artifact(path, KIND, {"policy": name, "arguments": asdict(policy)}, tensors)


def load_policy(path: str | Path) -> GuidancePolicy:
    """Read a policy that `save_policy` wrote.

    Raises:
        ArtifactError: When the directory is missing, corrupt or of another kind.
    """
    config, _ = load_artifact(path, KIND, loose=("gamma",))
    try:
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in config["arguments"].items()}
        return _CLASSES[config["policy"]](**arguments)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"the policy in {path} is corrupt ({error}); make it again") from error
