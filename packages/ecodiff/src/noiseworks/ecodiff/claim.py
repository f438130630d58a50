"""The claim: masks learned through the whole sampler find the fifth of the prunable parameters that is not missed.

It stands on the SD3-type pipeline of the testbed `shapes`, whose transformer is mostly prunable. What is trained
and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_most, no_worse

if TYPE_CHECKING:
    from noiseworks.ecodiff.evidence import Shared

ARMS = (
    Arm("whole", "the whole model", "reference"),
    Arm("magnitude", "magnitude", "baseline"),
    Arm("random", "random", "naive"),
    Arm("taylor", "Taylor at one step", "baseline"),
    Arm("step", "masks, one step's prediction", "baseline"),
    Arm("ecodiff", "masks, whole sampler", "method"),
)


def prepare(seed: int, context: Context) -> "Shared":
    """Rank the units by each method, prune to one size, and draw all arms from the same noise in turn."""
    from noiseworks.ecodiff.evidence import draw_arms

    return draw_arms(seed, context, tuple(arm.name for arm in ARMS))


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Measure what one arm drew."""
    from noiseworks.ecodiff.evidence import measure

    label = next(one.label for one in ARMS if one.name == arm)
    return measure(arm, label, shared, context)


CLAIM = Claim(
    method="ecodiff",
    paper="Learnable Sparsity for Vision Generative Models (ICLR 2026, arXiv 2412.02852)",
    statement="Masks learned through the whole sampler remove 20 % of the prunable parameters at little loss, without "
    "retraining.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_most("latent_error", "ecodiff", "magnitude", ratio=0.6, name="latent error against magnitude"),
        at_most(
            "latent_error", "ecodiff", "step", ratio=0.8, name="latent error against one step's objective"
        ),
        no_worse("score", "ecodiff", "whole", by=0.03, name="oracle score within 3 points"),
        at_most("seconds", "ecodiff", "whole", ratio=0.9, name="seconds per image"),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 2, "calibration": 4, "epochs": 1, "steps": 2}),
        "quick": Scale((500,), 300, {"prompts": 16, "calibration": 16, "epochs": 1, "steps": 4}),
        "laptop": Scale(
            (1000, 1001, 1002), 1200, {"prompts": 128, "calibration": 32, "epochs": 4, "steps": 8}
        ),
        "full": Scale((1000,), 360_000, {"prompts": 1000, "calibration": 100, "epochs": 4, "steps": 50}),
    },
    prepare=prepare,
    run=run,
    units="prompt",
    columns={
        "latent_error": "latent error to the whole model",
        "score": "oracle score",
        "ssim": "SSIM to the whole model",
        "parameters": "parameters",
        "seconds": "seconds per image",
    },
    preconditions=(
        Floor(
            "magnitude",
            "latent_error",
            0.01,
            "pruning by magnitude changes the latents by only {:.2g}: this model has nothing left to gain",
        ),
    ),
    model_kind="pipeline",
)
