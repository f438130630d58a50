"""The command line `noiseworks-mode`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.mode"

app = make_app(
    "mode",
    {
        "train": Command(f"{_HERE}.train_command:train", "Train a policy on demonstrations."),
        "finetune": Command(f"{_HERE}.train_command:finetune", "Go on training a policy on other data."),
    },
)


def main() -> None:
    """Run `noiseworks-mode`."""
    run(app)
