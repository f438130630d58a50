"""The command line `noiseworks-freecache`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.freecache.commands"

app = make_app(
    "freecache",
    {
        "generate": Command(f"{_HOME}:generate", "Complete a prompt with cached keys, guided or not."),
        "compare": Command(
            f"{_HOME}:compare", "Time no cache, cache, guide and both at several prompt lengths."
        ),
        "probe": Command(f"{_HOME}:probe", "Measure how much keys and values drift, by layer and step."),
        "eval": Command(f"{_HOME}:evaluate", "Count the right answers of a decoding on a task."),
    },
)


def main() -> None:
    """Run `noiseworks-freecache`."""
    run(app)
