"""The command line `noiseworks-policy-guided-diffusion`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.policy_guided_diffusion.commands"

app = make_app(
    "policy-guided-diffusion",
    {
        "fit": Command(f"{_HOME}:fit", "Train a diffusion model of whole trajectories."),
        "sample": Command(f"{_HOME}:sample", "Write synthetic transitions near a policy."),
        "train": Command(f"{_HOME}:train", "Train an offline agent on real, synthetic or guided data."),
    },
)


def main() -> None:
    """Run `noiseworks-policy-guided-diffusion`."""
    run(app)
