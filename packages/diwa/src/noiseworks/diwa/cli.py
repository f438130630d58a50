"""The command line `noiseworks-diwa`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.diwa.commands"

app = make_app(
    "diwa",
    {
        "fit": Command(f"{_HOME}:fit", "Train a world model of recorded play."),
        "imitate": Command(
            f"{_HOME}:imitate", "Train a policy that imitates demonstrations on a model's features."
        ),
        "reward": Command(f"{_HOME}:reward", "Train a classifier of success on real and imagined latents."),
        "train": Command(f"{_HOME}:train", "Tune a policy inside a world model, without a real step."),
        "eval": Command(f"{_HOME}:evaluate", "Evaluate a policy in a real environment."),
    },
)


def main() -> None:
    """Run `noiseworks-diwa`."""
    run(app)
