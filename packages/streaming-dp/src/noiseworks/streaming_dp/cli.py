"""The command line `noiseworks-streaming-dp`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.streaming_dp"

app = make_app(
    "streaming-dp",
    {
        "levels": Command(f"{_HERE}.commands:levels", "Show the buffer's noise levels and calls per cycle."),
        "convert": Command(f"{_HERE}.commands:convert_policy", "Convert an ordinary policy's network."),
        "train": Command(
            f"{_HERE}.commands:train_policy", "Fine-tune a converted policy, or train a new one."
        ),
        "eval": Command(f"{_HERE}.commands:evaluate", "Run a streaming policy on the table."),
        "compare": Command(f"{_HERE}.commands:compare", "Compare streaming with the ordinary policy."),
        "lerobot": Command(f"{_HERE}.commands:lerobot", "Write a policy for LeRobot's own commands."),
    },
)


def main() -> None:
    """Run `noiseworks-streaming-dp`."""
    run(app)
