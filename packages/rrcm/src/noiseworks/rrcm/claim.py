"""The claim: a classifier made of a consistent representation is certified further than those trained on noise alone.

All classifiers have one architecture and one budget of fine-tuning; a denoiser with a classifier of clean images is
certified beside them, in one step and in ten. Radii are measured with the published procedure; what is trained stands
in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.rrcm.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Train the classifiers of all arms."""
    from noiseworks.rrcm.evidence import train_all

    return train_all(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Certify held-out images with the classifier of one arm."""
    from noiseworks.rrcm.evidence import certify_arm

    return certify_arm(arm, shared, context)


def sizes(model: tuple[int, int], steps: tuple[int, int, int], batch: int, draws: int, images: int) -> dict:
    """Return the settings of a scale: depth and width; steps of pre-training, fine-tuning and denoiser."""
    lengths = dict(zip(("pretrain", "finetune", "denoiser"), steps, strict=True))
    return {"depth": model[0], "width": model[1], **lengths, "batch": batch, "n": draws, "images": images}


CLAIM = Claim(
    method="rrcm",
    paper="Robust Representation Consistency Model via Contrastive Denoising (ICLR 2025, arXiv 2501.13094)",
    statement="Consistent representations are certified further than noise training and one-step denoising, at one "
    "call a draw.",
    testbed="digits",
    arms=(
        Arm("cohen", "trained on noise (Cohen)", "baseline"),
        Arm("consistent", "consistency, from scratch", "baseline"),
        Arm("denoise", "denoise in one step, classify", "baseline"),
        Arm("purify", "denoise in ten steps, classify", "baseline"),
        Arm("rrcm", "pre-trained, consistency (rRCM)", "method"),
    ),
    targets=(
        at_least("radius", "rrcm", "cohen", difference=0.02),
        no_worse("radius", "rrcm", "consistent", by=0.01, name="radius against consistency from scratch"),
        at_least("radius", "rrcm", "denoise", difference=0.0, name="radius against one-step denoising"),
        at_most("milliseconds", "rrcm", "denoise", ratio=0.75, name="time against one-step denoising"),
        at_most("milliseconds", "rrcm", "purify", ratio=0.2, name="time against ten-step purification"),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes((1, 16), (2, 2, 2), 16, 20, 2)),
        "quick": Scale((500,), 120, sizes((2, 32), (15, 60, 100), 128, 200, 20)),
        "laptop": Scale((1000, 1001, 1002), 900, sizes((3, 40), (80, 600, 200), 256, 500, 50)),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "cohen", "certified", 0.5, "training on noise certifies only {:.0%} of the images at any radius"
        ),
    ),
    units="image",
    columns={
        "radius": "average certified radius",
        "certified": "certified and right",
        "certified_half": "at a radius of 0.5",
        "milliseconds": "milliseconds a draw",
    },
)
