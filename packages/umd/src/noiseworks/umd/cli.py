"""The command line `noiseworks-umd`."""

from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "umd",
    {
        "blend": Command("noiseworks.umd.commands:blend_numbers", "Blend two numbers."),
    },
)


def main() -> None:
    """Run `noiseworks-umd`."""
    run(app)
