"""The command line `noiseworks-dev`."""

from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "dev",
    {
        "new": Command(
            "noiseworks.dev.laying:new", "Lay a package for a new method; it runs and passes its tests."
        ),
        "fuzz": Command("noiseworks.dev.fuzzing:fuzz", "Type a package's good lines with one thing wrong."),
        "check": Command(
            "noiseworks.dev.checking:check", "Check one package: its style, its tests, and those about it."
        ),
    },
)


def main() -> None:
    """Run `noiseworks-dev`."""
    run(app)
