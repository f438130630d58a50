"""The command line `noiseworks-lmd`."""

from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "lmd",
    {
        "blend": Command("noiseworks.lmd.commands:blend_numbers", "Blend two numbers."),
    },
)


def main() -> None:
    """Run `noiseworks-lmd`."""
    run(app)
