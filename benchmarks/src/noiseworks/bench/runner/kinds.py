"""What kind of model a folder holds, told by its files alone: nothing heavy is imported, nothing is loaded."""

import json
from pathlib import Path

from noiseworks.bench.claims import ModelKind
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model


def kind_of(folder: Path) -> ModelKind | None:
    """Return what a folder holds, or None when its files do not say.

    A diffusers pipeline has `model_index.json`. A `config.json` names a diffusers class (`_class_name`), the type of a
    transformers model (`model_type`), or, for a LeRobot or native policy, neither.
    """
    if (folder / "model_index.json").is_file():
        return "pipeline"
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    if "_class_name" in config:
        return "autoencoder" if str(config["_class_name"]).startswith(("Autoencoder", "VQ")) else None
    return "language model" if "model_type" in config else "policy"


def check_kind(name: str, wanted: ModelKind, method: str) -> None:
    """Refuse a model of another kind than a claim needs; a hub id is looked at when it is loaded.

    Raises:
        InputError: Naming the two kinds.
    """
    folder = Path(resolve_model(name))
    found = kind_of(folder) if folder.is_dir() else wanted
    if found != wanted:
        held = f"a {found}" if found else "no model that is known here"
        raise InputError(f"{method} needs a {wanted} as --model, but {name} holds {held}")
