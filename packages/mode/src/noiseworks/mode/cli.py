"""The command line `noiseworks-mode`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HERE = "noiseworks.mode"

app = make_app(
    "mode",
    {
        "goals": Command(f"{_HERE}.clip:embed_goals", "Embed the tasks' texts by a CLIP model."),
        "train": Command(f"{_HERE}.train_command:train", "Train a policy on demonstrations."),
        "eval": Command(f"{_HERE}.commands:eval_policy", "Run a policy and count its successes."),
        "cache": Command(
            f"{_HERE}.commands:cache", "Cache the experts of every step and check that it is exact."
        ),
        "usage": Command(f"{_HERE}.commands:usage", "Show which experts work at which noise level."),
        "bench": Command(f"{_HERE}.commands:bench", "Time routed and cached experts."),
        "ablate": Command(f"{_HERE}.ablation:ablate", "Train the paper's ablations and compare them."),
        "claim": Command(f"{_HERE}.claim:run_claim", "Run the paper's claim at one scale."),
        "finetune": Command(f"{_HERE}.train_command:finetune", "Go on training a policy on other data."),
    },
)


def main() -> None:
    """Run `noiseworks-mode`."""
    run(app)
