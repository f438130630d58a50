"""The claim: noise of a learned distribution makes a prompt come out right more often, at an untouched network.

What is fitted and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Ceiling, Claim, Context, Floor, Measurement, Scale, at_least, at_most

if TYPE_CHECKING:
    from noiseworks.find.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Choose captions that standard normal noise draws right now and then, and measure it on fresh draws."""
    from noiseworks.find.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Fit one arm to each caption and measure fresh draws."""
    from noiseworks.find.evidence import measured

    label = next(one.label for one in CLAIM.arms if one.name == arm)
    return measured(arm, label, shared, context)


CLAIM = Claim(
    method="find",
    paper="FIND: Fine-tuning Initial Noise Distribution with Policy Optimization for Diffusion Models "
    "(ACM MM 2024, arXiv 2407.19453)",
    statement="Where standard normal noise draws a prompt right in some draws only, noise of a distribution learned by "
    "policy gradients does so at least 15 points more often, with fewer images than other searches need.",
    testbed="shapes",
    arms=(
        Arm("standard", "standard normal noise", "naive"),
        Arm("best_noise", "the best noise, drawn from again", "baseline"),
        Arm("cem", "cross-entropy method", "baseline"),
        Arm("stale", "FIND, rewards of older noise", "reference"),
        Arm("find", "FIND", "method"),
    ),
    targets=(
        at_least("success", "find", "standard", difference=0.15, name="success, 15 points over normal noise"),
        at_least("success", "find", ("best_noise", "cem"), difference=0.0, name="success, best other search"),
        at_most("images", "find", "cem", ratio=1.0, name="images until 15 points are gained, of CEM's"),
        at_least("success", "find", "stale", difference=0.0, name="success, of paired over stale rewards"),
        at_least("diversity", "find", "standard", ratio=0.9, name="diversity within 10 %", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 1, "candidates": 1, "budget": 24, "draws": 8}),
        "quick": Scale((500,), 120, {"prompts": 1, "candidates": 3, "budget": 24, "draws": 16}),
        "laptop": Scale(
            (1000, 1001, 1002), 1200, {"prompts": 2, "candidates": 8, "budget": 480, "draws": 64}
        ),
        "full": Scale(
            (1000, 1001, 1002), 360_000, {"prompts": 20, "candidates": 60, "budget": 600, "draws": 256}
        ),
    },
    prepare=prepare,
    run=run,
    units="draw",
    columns={
        "success": "caption right",
        "score": "attributes right",
        "images": "images until +15 points",
        "seconds": "seconds of the fit",
        "diversity": "diversity",
        "mean_abs": "mean |mu|",
    },
    preconditions=(
        Floor(
            "standard", "success", 0.1, "standard normal noise is right in only {:.0%}; nothing to learn from"
        ),
        Ceiling("standard", "success", 0.7, "standard normal noise is right in {:.0%} already"),
    ),
)
