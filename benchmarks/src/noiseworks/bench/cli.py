"""The command line of the runner: `noiseworks bench [compose|table|train-testbed|cards]`."""

from noiseworks.bench.runner.session import bench
from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "bench",
    {
        "train-testbed": Command(
            "noiseworks.bench.testbeds.training:train_testbed",
            "Train a testbed's models again, from its data.",
        ),
        "cards": Command(
            "noiseworks.bench.testbeds.cards:list_cards", "Show what each shipped testbed model is."
        ),
    },
)
app.default(bench)


def main() -> None:
    """Run `noiseworks bench`."""
    run(app)
