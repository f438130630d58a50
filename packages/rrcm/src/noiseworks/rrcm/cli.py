"""The command line `noiseworks-rrcm`."""

from noiseworks.core.cli import Command, make_app, run

_HOME = "noiseworks.rrcm.commands"

app = make_app(
    "rrcm",
    {
        "pretrain": Command(f"{_HOME}:pretrain_encoder", "Pre-train an encoder on images without labels."),
        "finetune": Command(f"{_HOME}:finetune_classifier", "Train a classifier on an encoder."),
        "certify": Command(f"{_HOME}:certify", "Certify a classifier's answers; a stopped run goes on."),
        "report": Command(f"{_HOME}:report", "Compare tables of certificates."),
    },
)


def main() -> None:
    """Run `noiseworks-rrcm`."""
    run(app)
