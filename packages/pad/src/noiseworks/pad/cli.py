"""The command line `noiseworks-pad`."""

from noiseworks.core.cli import Command, make_app, run

COMMANDS = "noiseworks.pad.commands"
app = make_app(
    "pad",
    {
        "train": Command(f"{COMMANDS}:train", "Train a model on demonstrations and video."),
        "eval": Command(f"{COMMANDS}:evaluate", "Measure predicted poses and pictures."),
        "predict": Command(f"{COMMANDS}:predict", "Draw predicted pictures below the true ones."),
        "rollout": Command(f"{COMMANDS}:rollout", "Run the policy on the table and count successes."),
    },
)


def main() -> None:
    """Run `noiseworks-pad`."""
    run(app)
