"""The models of the testbed `tabletop` that come with the package: a MoDE and its dense counterparts."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"


def testbed_models() -> dict[str, Path]:
    """Return their directories by name: `testbed:mode`, `testbed:mode-dense-large` and `testbed:mode-dense-small`."""
    folders = [folder for folder in sorted(SHIPPED.iterdir()) if folder.is_dir()]
    return {folder.name if folder.name == "mode" else f"mode-{folder.name}": folder for folder in folders}
