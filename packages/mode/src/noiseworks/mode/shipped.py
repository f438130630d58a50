"""The models that come with the package, and policies by name."""

from pathlib import Path

from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.mode.model import MoDEModel

SHIPPED = Path(__file__).parent / "shipped"
PREFIX = "shipped:"


def shipped_models() -> dict[str, Path]:
    """Return the shipped models of the testbed `tabletop` by name: a MoDE and its dense counterparts."""
    return {folder.name: folder for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()}


def load_model(name: str | Path) -> MoDEModel:
    """Return a trained model.

    Args:
        name: A directory, or `shipped:<name>` with a name of `shipped_models`.

    Raises:
        InputError: When there is no such model.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        folder = Path(resolve_model(text))
        if not folder.is_dir():
            raise InputError(f"no model directory at {text!r}: download it first, or name a shipped model")
        return MoDEModel.from_pretrained(folder)
    models = shipped_models()
    short = text.removeprefix(PREFIX)
    if short not in models:
        known = ", ".join(PREFIX + one for one in models)
        raise InputError(f"unknown shipped model {text!r}; there are {known}")
    return MoDEModel.from_pretrained(models[short])
