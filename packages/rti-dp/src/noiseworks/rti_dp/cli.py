"""The command line `noiseworks-rti-dp`."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.rti_dp"

app = make_app(
    "rti-dp",
    {
        "suggest": Command(f"{_HERE}.commands:suggest", "Suggest a list of steps from recorded episodes."),
        "eval": Command(f"{_HERE}.commands:evaluate", "Run a policy by real-time iteration."),
        "scale-data": Command(
            f"{_HERE}.commands:scale_data", "Divide a dataset's discrete actions by a factor."
        ),
        "compare": Command(f"{_HERE}.commands:compare", "Compare with full denoising, DDIM and fresh noise."),
        "lerobot": Command(f"{_HERE}.commands:lerobot", "Write a policy for LeRobot's own commands."),
    },
)


def main() -> None:
    """Run `noiseworks-rti-dp`."""
    run(app)
