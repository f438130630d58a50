"""The command line `noiseworks-expo`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.expo.commands"

app = make_app(
    "expo",
    {
        "fit": Command(f"{_HOME}:fit", "Train a base policy that imitates recorded experience."),
        "train": Command(f"{_HOME}:train", "Learn critics and edits of a policy in an environment."),
        "eval": Command(f"{_HOME}:evaluate", "Evaluate a policy, with or without edits and choice."),
    },
)


def main() -> None:
    """Run `noiseworks-expo`."""
    run(app)
