"""The command line `noiseworks-diffusion-theory`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.diffusion_theory.commands"

app = make_app(
    "diffusion-theory",
    {
        "eval": Command(f"{_HOME}:evaluate", "Run experiments on the theory's statements."),
        "diagnose": Command(f"{_HOME}:diagnose", "Say what the theorems say about your own data."),
        "propose": Command(f"{_HOME}:propose", "Propose points for a target reward."),
    },
)


def main() -> None:
    """Run `noiseworks-diffusion-theory`."""
    run(app)
