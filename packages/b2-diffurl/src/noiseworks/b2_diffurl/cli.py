"""The command line `noiseworks-b2-diffurl`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.b2_diffurl.commands"

app = make_app(
    "b2-diffurl",
    {
        "train": Command(f"{_HOME}:train", "Tune a pipeline by a reward, the last denoising steps first."),
        "schedule": Command(
            f"{_HOME}:schedule", "Print which steps each stage trains, and what a stage costs."
        ),
        "eval": Command(f"{_HOME}:evaluate", "Compare a tuned pipeline with what it was, at a reward."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside DDPO at equal images."),
    },
)


def main() -> None:
    """Run `noiseworks-b2-diffurl`."""
    run(app)
