"""Testbeds: data, small trained models that ship, and scorers that measure quality exactly."""

from pathlib import Path


def shipped_models() -> dict[str, Path]:
    """Return every trained model that ships, by the name that follows `testbed:`.

    A shipped model is a directory `<testbed>/weights/<name>` in its host's own format.
    """
    here = Path(__file__).parent
    return {path.name: path for path in sorted(here.glob("*/weights/*")) if path.is_dir()}
