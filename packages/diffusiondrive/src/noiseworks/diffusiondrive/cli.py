"""The command line `noiseworks-diffusiondrive`."""

from noiseworks.core.cli import Command, make_app, run

COMMANDS = "noiseworks.diffusiondrive.commands"
app = make_app(
    "diffusiondrive",
    {
        "train": Command(f"{COMMANDS}:train", "Train a planner on scenes."),
        "make": Command(f"{COMMANDS}:make", "Train all designs on the same scenes."),
        "eval": Command(f"{COMMANDS}:evaluate", "Score a planner on scenes."),
        "bench": Command(f"{COMMANDS}:bench", "Time plans, alone and in a batch."),
        "scenes": Command(f"{COMMANDS}:scenes", "Write labelled scenes as files."),
        "anchors": Command(f"{COMMANDS}:anchors", "Cluster the expert's plans into anchors."),
    },
)


def main() -> None:
    """Run `noiseworks-diffusiondrive`."""
    run(app)
