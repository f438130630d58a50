"""The command line `noiseworks-dtr`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.dtr.commands"

app = make_app(
    "dtr",
    {
        "train": Command(f"{_HOME}:train", "Train a routed DiT on labelled images."),
        "sample": Command(f"{_HOME}:sample", "Draw images from a routed DiT."),
        "eval": Command(
            f"{_HOME}:evaluate", "Measure the held-out denoising loss by tenths of the timesteps."
        ),
        "inspect": Command(f"{_HOME}:inspect", "Show the masks and which timesteps share channels."),
    },
)


def main() -> None:
    """Run `noiseworks-dtr`."""
    run(app)
