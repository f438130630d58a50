"""The command line `noiseworks-lmd`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.lmd.commands"

app = make_app(
    "lmd",
    {
        "pretrain": Command(f"{_HOME}:pretrain", "Train an auto-encoder of masked latents, or of pixels."),
        "finetune": Command(f"{_HOME}:finetune", "Train a classifier on its encoder."),
        "probe": Command(f"{_HOME}:probe", "Measure what its frozen features know."),
        "reconstruct": Command(
            f"{_HOME}:reconstruct", "Show images, their masks and what the model fills in."
        ),
        "schedule": Command(f"{_HOME}:schedule", "Show the mask ratio and the kept patches by step."),
    },
)


def main() -> None:
    """Run `noiseworks-lmd`."""
    run(app)
