"""The command line `noiseworks-mode`: every verb is a public function of the package."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.mode.commands"

app = make_app(
    "mode",
    {
        "goals": Command(f"{_HOME}:goals", "Embed the tasks' texts by a CLIP model."),
        "train": Command(f"{_HOME}:train", "Train a policy on demonstrations."),
        "finetune": Command(f"{_HOME}:finetune", "Go on training a policy on other data."),
        "eval": Command(f"{_HOME}:eval_policy", "Run a policy and count its successes."),
        "cache": Command(f"{_HOME}:cache", "Cache the experts of every step and check that it is exact."),
        "usage": Command(f"{_HOME}:usage", "Show which experts work at which noise level."),
        "compare": Command(f"{_HOME}:compare", "Time routed and cached experts, and a dense policy."),
        "ablate": Command(f"{_HOME}:ablate", "Train the paper's ablations and compare them."),
    },
)


def main() -> None:
    """Run `noiseworks-mode`."""
    run(app)
