"""The command line `noiseworks-dsrl`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.dsrl.commands"

app = make_app(
    "dsrl",
    {
        "train": Command(f"{_HOME}:train", "Learn which noise a frozen policy should start from."),
        "eval": Command(f"{_HOME}:evaluate", "Evaluate a policy, frozen or steered."),
    },
)


def main() -> None:
    """Run `noiseworks-dsrl`."""
    run(app)
