"""Trained models by name."""

from pathlib import Path

from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.mode.model import MoDEModel


def load_model(name: str | Path) -> MoDEModel:
    """Return a trained model.

    Args:
        name: A directory or `testbed:<name>`.

    Raises:
        InputError: When there is no such model.
    """
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        raise InputError(f"no model directory at {str(name)!r}: download it first, or name testbed:mode")
    return MoDEModel.from_pretrained(folder)
