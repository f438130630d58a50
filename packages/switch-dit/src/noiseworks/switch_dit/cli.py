"""The command line `noiseworks-switch-dit`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.switch_dit.commands"

app = make_app(
    "switch-dit",
    {
        "convert": Command(f"{_HOME}:convert", "Add fresh experts to a plain DiT; its outputs stay."),
        "train": Command(f"{_HOME}:train", "Train a DiT with experts on labelled images."),
        "sample": Command(f"{_HOME}:sample", "Draw images, with the experts folded into one matrix a block."),
        "inspect": Command(f"{_HOME}:inspect", "Show which timesteps use which experts."),
    },
)


def main() -> None:
    """Run `noiseworks-switch-dit`."""
    run(app)
