"""The command line `noiseworks-ppd`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.ppd.commands"

app = make_app(
    "ppd",
    {
        "embed": Command(f"{_HOME}:embed", "Make embeddings of people from a few of their choices."),
        "probe": Command(f"{_HOME}:probe", "Measure how well people are recognised by their embeddings."),
        "train": Command(f"{_HOME}:train", "Tune a pipeline to everybody's choices at once."),
        "sample": Command(f"{_HOME}:sample", "Draw for somebody, or for a mixture of people."),
        "eval": Command(f"{_HOME}:evaluate", "Measure how well held-out choices are foretold."),
    },
)


def main() -> None:
    """Run `noiseworks-ppd`."""
    run(app)
