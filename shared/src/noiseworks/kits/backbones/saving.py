"""A DiT as an artifact, with what the methods in it need to be known by whoever loads it."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.backbones.conversion import load_original
from noiseworks.kits.backbones.dit import DiT
from noiseworks.kits.backbones.options import DiTConfig
from torch import Tensor

KIND = "backbones/dit"


def save_dit(
    path: str | Path,
    model: DiT,
    *,
    schedule: str,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model.

    Args:
        path: The folder.
        model: The model; what is attached to it is not saved.
        schedule: Kind of the noise schedule that it was trained with.
        methods: Slug -> settings of a method without which the weights mean something else.
        tensors: Weights of such methods, under names that begin with "<slug>.".
    """
    config = {"model": asdict(model.config), "schedule": schedule, "methods": dict(methods or {})}
    save_artifact(path, KIND, config, model.state_dict() | dict(tensors or {}))


def load_dit(
    path: str | Path, *, knows: Collection[str] = ()
) -> tuple[DiT, dict[str, Any], dict[str, Tensor]]:
    """Read a model.

    Args:
        path: The folder.
        knows: Methods that the caller attaches after loading.

    Returns:
        The model in evaluation mode, the rest of its settings (`schedule`, `methods`), and the methods' tensors.

    Raises:
        ArtifactError: When the folder holds no such model, or one of a method that the caller does not know: without
            it the weights would compute something else.
    """
    config, tensors = load_artifact(path, KIND)
    methods = config.get("methods", {})
    for slug in methods:
        if slug not in knows:
            raise ArtifactError(
                f"{path} was trained with {slug} and means nothing without it: load it with noiseworks-{slug}"
            )
    own = {key: value for key, value in tensors.items() if key.split(".")[0] not in methods}
    try:
        model = load_original(DiT(DiTConfig(**config["model"])), own)
    except (KeyError, TypeError, InputError) as error:
        raise ArtifactError(f"{path} is no DiT that this release reads: {error}") from error
    rest = {key: value for key, value in tensors.items() if key not in own}
    return model.eval(), config, rest
