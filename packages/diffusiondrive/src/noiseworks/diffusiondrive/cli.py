"""The command line `noiseworks-diffusiondrive`."""

from noiseworks.core.cli import Command, make_app, run

COMMANDS = "noiseworks.diffusiondrive.commands"
app = make_app(
    "diffusiondrive",
    {
        "train": Command(f"{COMMANDS}:train", "Train a planner on scenes."),
        "eval": Command(f"{COMMANDS}:evaluate", "Score a planner on scenes."),
        "anchors": Command(f"{COMMANDS}:anchors", "Cluster the expert's plans into anchors."),
    },
)


def main() -> None:
    """Run `noiseworks-diffusiondrive`."""
    run(app)
