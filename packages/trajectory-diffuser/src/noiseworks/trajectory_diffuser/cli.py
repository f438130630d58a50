"""The command line `noiseworks-trajectory-diffuser`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.trajectory_diffuser.commands"

app = make_app(
    "trajectory-diffuser",
    {
        "fit": Command(f"{_HOME}:fit", "Train a planner on recorded experience."),
        "eval": Command(f"{_HOME}:evaluate", "Evaluate a planner in an environment."),
        "compare": Command(f"{_HOME}:compare", "Compare drafts, refined drafts and plans from noise."),
        "plan": Command(f"{_HOME}:plan", "Write the first plans of some episodes."),
    },
)


def main() -> None:
    """Run `noiseworks-trajectory-diffuser`."""
    run(app)
