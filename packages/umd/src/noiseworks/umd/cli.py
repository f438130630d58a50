"""The command line `noiseworks-umd`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.umd.commands"

app = make_app(
    "umd",
    {
        "pretrain": Command(f"{_HOME}:pretrain", "Train an auto-encoder on images without labels."),
        "finetune": Command(f"{_HOME}:finetune", "Train it further to draw images of a class."),
        "sample": Command(f"{_HOME}:sample", "Draw images with a fine-tuned model, the classes in turn."),
        "probe": Command(f"{_HOME}:probe", "Measure what its frozen features know."),
        "reconstruct": Command(
            f"{_HOME}:reconstruct", "Show images, their masks and what the model fills in."
        ),
        "eval": Command(f"{_HOME}:evaluate", "Measure samples: Fréchet distance and classes."),
    },
)


def main() -> None:
    """Run `noiseworks-umd`."""
    run(app)
