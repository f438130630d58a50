"""The command line `noiseworks-bac`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.bac.commands"

app = make_app(
    "bac",
    {
        "profile": Command(
            f"{_HOME}:profile_policy", "Measure how alike each block's outputs are along the steps."
        ),
        "plan": Command(f"{_HOME}:plan", "Decide at which steps each block is computed, and show the table."),
        "heatmap": Command(f"{_HOME}:heatmap", "Draw a plan or a profile as SVG, PNG or WebP."),
        "errors": Command(f"{_HOME}:errors", "Compare a plan's block outputs with the full run's."),
        "eval": Command(f"{_HOME}:eval_policy", "Run a policy with a plan on a testbed, with a video."),
        "compare": Command(f"{_HOME}:compare", "Time the full policy, baselines and plans in one run."),
    },
)


def main() -> None:
    """Run `noiseworks-bac`."""
    run(app)
