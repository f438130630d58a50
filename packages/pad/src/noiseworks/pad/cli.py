"""The command line `noiseworks-pad`."""

from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "pad",
    {
        "blend": Command("noiseworks.pad.commands:blend_numbers", "Blend two numbers."),
    },
)


def main() -> None:
    """Run `noiseworks-pad`."""
    run(app)
