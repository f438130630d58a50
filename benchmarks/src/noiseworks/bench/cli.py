"""The command line of the runner: `noiseworks bench [compose|table|publish|ship|train-testbed|cards]`."""

from noiseworks.bench.runner.session import bench
from noiseworks.core.cli import Command, make_app, run

app = make_app(
    "bench",
    {
        "compose": Command(
            "noiseworks.bench.runner.session:compose",
            "Measure pairs of methods on one host.",
        ),
        "table": Command("noiseworks.bench.runner.tables:table", "Print a folder's results as markdown."),
        "publish": Command(
            "noiseworks.bench.runner.tables:publish",
            "Write what README, docs and reports show of the results.",
        ),
        "ship": Command(
            "noiseworks.bench.shipped:ship", "Copy a laptop run's models into a method's package."
        ),
        "train-testbed": Command(
            "noiseworks.bench.testbeds.training:train_testbed", "Train a testbed's models again."
        ),
        "cards": Command("noiseworks.bench.testbeds.cards:list_cards", "Show the shipped testbed models."),
    },
)
app.default(bench)


def main() -> None:
    """Run `noiseworks bench`."""
    run(app)
