"""The command line `noiseworks-maskunet`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.maskunet.commands"

app = make_app(
    "maskunet",
    {
        "train": Command(f"{_HOME}:train", "Train masks for a pipeline on your images."),
        "generate": Command(f"{_HOME}:generate", "Draw prompts with trained masks."),
        "optimise": Command(f"{_HOME}:optimise", "Draw prompts with masks optimised for each image."),
        "random": Command(f"{_HOME}:random", "Draw prompts with random masks."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside best of n at equal calls."),
        "inspect": Command(f"{_HOME}:inspect", "Show what trained masks are of."),
        "bench": Command(f"{_HOME}:bench", "Time the fused path beside the released way."),
    },
)


def main() -> None:
    """Run `noiseworks-maskunet`."""
    run(app)
