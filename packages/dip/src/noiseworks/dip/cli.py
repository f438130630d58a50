"""The command line `noiseworks-dip`."""

from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "dip",
    {
        "blend": Command("noiseworks.dip.commands:blend_numbers", "Blend two numbers."),
    },
)


def main() -> None:
    """Run `noiseworks-dip`."""
    run(app)
