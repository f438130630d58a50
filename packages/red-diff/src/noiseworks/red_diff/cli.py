"""The command line `noiseworks-red-diff`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.red_diff.commands"

app = make_app(
    "red-diff",
    {
        "restore": Command(f"{_HOME}:restore_image", "Restore a degraded image of yours."),
        "compare": Command(
            f"{_HOME}:compare_methods", "Degrade your images and restore them with every method."
        ),
    },
)


def main() -> None:
    """Run `noiseworks-red-diff`."""
    run(app)
