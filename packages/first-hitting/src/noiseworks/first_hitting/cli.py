"""The command line `noiseworks-first-hitting`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.first_hitting.commands"

app = make_app(
    "first-hitting",
    {
        "sample": Command(f"{_HOME}:sample", "Complete prompts by first-hitting sampling."),
        "compare": Command(f"{_HOME}:compare", "Compare with ancestral sampling on your own model."),
        "precision": Command(f"{_HOME}:precision", "Show what a uniform's precision does to a distribution."),
        "elbo": Command(f"{_HOME}:evidence", "Bound the likelihood of texts under a model."),
    },
)


def main() -> None:
    """Run `noiseworks-first-hitting`."""
    run(app)
