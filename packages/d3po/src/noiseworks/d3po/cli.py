"""The command line `noiseworks-d3po`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.d3po.commands"

app = make_app(
    "d3po",
    {
        "train": Command(f"{_HOME}:train", "Tune a pipeline, by the order that a reward gives or by labels."),
        "sample": Command(f"{_HOME}:sample", "Draw several images of each prompt, to be labelled."),
        "label": Command(f"{_HOME}:label", "Show pairs of drawn images on a local page, to be clicked."),
        "eval": Command(f"{_HOME}:evaluate", "Compare a tuned pipeline with what it was, at a reward."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside DDPO at equal images."),
    },
)


def main() -> None:
    """Run `noiseworks-d3po`."""
    run(app)
