"""The command line `noiseworks-black-scholes`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.black_scholes.commands"

app = make_app(
    "black-scholes",
    {
        "generate": Command(f"{_HOME}:generate", "Draw images that show several concepts at once."),
        "compare": Command(f"{_HOME}:compare", "Try every policy on your own model, from the same noise."),
        "calibrate": Command(f"{_HOME}:calibrate", "Find the match that each concept can reach."),
        "price": Command(f"{_HOME}:price", "Price a call."),
    },
)


def main() -> None:
    """Run `noiseworks-black-scholes`."""
    run(app)
