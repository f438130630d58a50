"""The command line `noiseworks-mdpo`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.mdpo"

app = make_app(
    "mdpo",
    {
        "generate": Command(
            f"{_HERE}.commands:generate", "Complete prompts with RCR or the standard sampler."
        ),
        "compare": Command(
            f"{_HERE}.commands:compare", "Try RCR on your own model, beside the standard sampler."
        ),
        "select": Command(f"{_HERE}.commands:select", "Find the prompts that a model over-denoises."),
        "train": Command(f"{_HERE}.commands:train", "Train with MDPO or one of its baselines."),
        "eval": Command(f"{_HERE}.commands:evaluate", "Measure accuracy and over-denoising on a task."),
        "viz": Command(f"{_HERE}.viewer:view_trace", "Show a recorded trace step by step."),
    },
)


def main() -> None:
    """Run `noiseworks-mdpo`."""
    run(app)
