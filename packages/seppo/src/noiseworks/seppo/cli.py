"""The command line `noiseworks-seppo`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.seppo.commands"

app = make_app(
    "seppo",
    {
        "train": Command(f"{_HOME}:train", "Tune a pipeline on good images and their prompts."),
        "eval": Command(f"{_HOME}:evaluate", "Compare a tuned pipeline with what it was, at a reward."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside fine-tuning and SPIN."),
    },
)


def main() -> None:
    """Run `noiseworks-seppo`."""
    run(app)
