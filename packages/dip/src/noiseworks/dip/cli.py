"""The command line `noiseworks-dip`."""

from noiseworks.core.cli import Command, make_app, run

COMMANDS = "noiseworks.dip.commands"
app = make_app(
    "dip",
    {
        "train": Command(f"{COMMANDS}:train", "Train a motion model, or a control branch on one."),
        "make": Command(f"{COMMANDS}:make", "Train both stages, one after the other."),
        "plan": Command(f"{COMMANDS}:plan", "Find a way over a scene's floor."),
        "generate": Command(f"{COMMANDS}:generate", "Generate motions in a scene."),
        "eval": Command(f"{COMMANDS}:evaluate", "Evaluate motions on cases of the testbed."),
        "compare": Command(f"{COMMANDS}:compare", "Compare DIP with its baselines."),
    },
)


def main() -> None:
    """Run `noiseworks-dip`."""
    run(app)
