"""The command line `noiseworks-diffusionguard`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.diffusionguard.commands"

app = make_app(
    "diffusionguard",
    {
        "protect": Command(f"{_HOME}:protect", "Protect a picture or a folder; a stopped run goes on."),
        "mask": Command(f"{_HOME}:mask", "Show the shrunk masks that a protection is averaged over."),
        "eval": Command(f"{_HOME}:evaluate", "Edit originals and protected pictures, also after purifiers."),
        "compare": Command(
            f"{_HOME}:compare", "Compare defences at equal budgets on your own pictures and model."
        ),
    },
)


def main() -> None:
    """Run `noiseworks-diffusionguard`."""
    run(app)
