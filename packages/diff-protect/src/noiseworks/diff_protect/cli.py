"""The command line `noiseworks-diff-protect`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.diff_protect.commands"

app = make_app(
    "diff-protect",
    {
        "protect": Command(f"{_HOME}:protect", "Protect a picture or a folder; a stopped run goes on."),
        "eval": Command(
            f"{_HOME}:evaluate", "Edit originals and protected pictures by SDEdit, also after purifiers."
        ),
        "compare": Command(
            f"{_HOME}:compare", "Compare methods at equal budgets on your own pictures and model."
        ),
        "analyse": Command(f"{_HOME}:analyse", "Measure why the encoder is the weak point of a model."),
    },
)


def main() -> None:
    """Run `noiseworks-diff-protect`."""
    run(app)
