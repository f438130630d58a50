"""The command line `noiseworks-ppap`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.ppap.commands"

app = make_app(
    "ppap",
    {
        "generate-data": Command(
            f"{_HOME}:generate_data", "Let the diffusion model make the images for the transfer."
        ),
        "train": Command(f"{_HOME}:train", "Train a guide's experts for noisy images."),
        "make": Command(f"{_HOME}:make", "Draw guided images."),
        "compare": Command(f"{_HOME}:compare", "Draw with experts, with the guide as it is, and unguided."),
    },
)


def main() -> None:
    """Run `noiseworks-ppap`."""
    run(app)
