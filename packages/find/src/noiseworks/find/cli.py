"""The command line `noiseworks-find`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.find.commands"

app = make_app(
    "find",
    {
        "fit": Command(f"{_HOME}:fit", "Learn from which noise a pipeline draws a prompt right."),
        "generate": Command(f"{_HOME}:generate", "Draw images from noise of a learned distribution."),
        "compare": Command(
            f"{_HOME}:compare", "Try it on your own model, beside other uses of as many images."
        ),
        "eval": Command(f"{_HOME}:evaluate", "Compare a learned distribution with standard normal noise."),
    },
)


def main() -> None:
    """Run `noiseworks-find`."""
    run(app)
