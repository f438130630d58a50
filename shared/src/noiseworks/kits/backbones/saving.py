"""Networks as artifacts; a DiT with what the methods in it need to be known by whoever loads it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.backbones.conversion import load_original
from noiseworks.kits.backbones.dit import DiT
from noiseworks.kits.backbones.options import DiTConfig
from torch import Tensor, nn

KIND = "backbones/dit"


def load_network[Network: nn.Module, About](
    path: str | Path, kind: str, make: Callable[[dict[str, Any]], tuple[Network, About]]
) -> tuple[Network, About]:
    """Read a network that `save_artifact(path, kind, config, network.state_dict())` wrote.

    Args:
        path: The folder.
        kind: What it must be, such as "umd/model".
        make: Makes, of the folder's config.json, a new network and whatever else the caller wants to know.

    Returns:
        The network with the folder's weights, in evaluation mode and without gradients, and the rest.

    Raises:
        ArtifactError: When the folder holds nothing of that kind, a config.json that `make` does not read, or weights
            of other sizes than config.json says.
    """
    config, tensors = load_artifact(path, kind)
    try:
        model, about = make(config)
    except (KeyError, TypeError, InputError) as error:
        raise ArtifactError(f"{path} is no {kind} that this release reads: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} holds weights of another network (depth, width, size or classes) than its config.json says"
        ) from error
    return model.eval().requires_grad_(False), about


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
