"""The command line `noiseworks-ecodiff`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.ecodiff.commands"

app = make_app(
    "ecodiff",
    {
        "fit": Command(f"{_HOME}:fit", "Learn which heads and neurons a pipeline can do without."),
        "prune": Command(f"{_HOME}:prune", "Write the smaller pipeline."),
        "recover": Command(f"{_HOME}:recover", "Bring a pruned pipeline closer to the whole one by LoRA."),
        "inspect": Command(f"{_HOME}:inspect", "Show learned masks layer by layer."),
        "eval": Command(f"{_HOME}:evaluate", "Measure a pruned pipeline against the whole one."),
        "compare": Command(f"{_HOME}:compare", "Try it on your own model, beside baselines at one size."),
    },
)


def main() -> None:
    """Run `noiseworks-ecodiff`."""
    run(app)
