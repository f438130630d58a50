"""The command line `noiseworks-linear-ag`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.linear_ag.commands"

app = make_app(
    "linear-ag",
    {
        "generate": Command(f"{_HOME}:generate", "Draw images under a guidance policy and report its cost."),
        "profile": Command(f"{_HOME}:profile", "Record how similar the two predictions are at each step."),
        "calibrate": Command(f"{_HOME}:calibrate", "Choose Adaptive Guidance's threshold for a model."),
        "fit": Command(f"{_HOME}:fit", "Fit LinearAG's coefficients."),
        "search": Command(f"{_HOME}:search", "Search for a fixed guidance policy within a budget."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside full guidance and others."),
    },
)


def main() -> None:
    """Run `noiseworks-linear-ag`."""
    run(app)
