"""The command line `noiseworks-pso`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.pso.commands"

app = make_app(
    "pso",
    {
        "train": Command(f"{_HOME}:train", "Tune a few-step pipeline online, on pairs that a reward orders."),
        "offline": Command(f"{_HOME}:offline", "Tune it on given images, against others or against its own."),
        "customize": Command(f"{_HOME}:customize", "Teach it a subject from a few pictures."),
        "eval": Command(
            f"{_HOME}:evaluate", "Compare a tuned pipeline with what it was, at several numbers of steps."
        ),
        "compare": Command(
            f"{_HOME}:compare",
            "Try it on your own model, beside DDPO and the denoising loss at equal images.",
        ),
    },
)


def main() -> None:
    """Run `noiseworks-pso`."""
    run(app)
