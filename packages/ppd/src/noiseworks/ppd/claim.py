"""The claim: told four choices of somebody, one tuned pipeline draws what they prefer, also for people it never met.

What is trained and measured stands in `evidence`.
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
    from noiseworks.ppd.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Let people choose among images of the untuned pipeline, and draw its trial."""
    from noiseworks.ppd.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure what it draws for each person."""
    from noiseworks.kits.pictures import grid, to_pixels, write_picture
    from noiseworks.ppd.evidence import measured

    metrics, images = measured(arm, shared, context)
    label = next(one.label for one in CLAIM.arms if one.name == arm)
    rows = {f"person {i}": to_pixels(own[:8]) for i, own in enumerate(images[:3])}
    return Measurement(
        metrics, images={label: write_picture(grid(rows, scale=2), context.folder / f"{arm}.png")}
    )


_SIZES = {"seen": 60, "unseen": 20, "choices": 40, "pool": 100, "per_prompt": 2, "steps": 120, "batch": 64}

CLAIM = Claim(
    method="ppd",
    paper="Personalized Preference Fine-tuning of Diffusion Models (CVPR 2025, arXiv 2501.06655)",
    statement="Told four choices of somebody, one tuned pipeline draws images that they prefer to the untuned one's, "
    "also for people it was not trained on; tuning on everybody's choices pooled serves nobody.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("rerank", "best of eleven by the same four choices", "baseline"),
        Arm("words", "the same four choices in words", "baseline"),
        Arm("pooled", "Diffusion-DPO, all choices pooled", "baseline"),
        Arm("ppd", "PPD", "method"),
        Arm("other", "PPD, told another's choices", "reference"),
        Arm("coin", "PPD, trained on choices by coin", "reference"),
    ),
    targets=(
        at_least("seen", "ppd", "base", difference=0.20, name="people trained on, 70 % better"),
        at_least("unseen", "ppd", "base", difference=0.12, name="new people, 62 % better"),
        at_least("seen", "ppd", "pooled", difference=0.10, name="above pooled tuning by 10 points"),
        at_least(
            "unseen", "ppd", ("rerank", "words"), difference=0.0, name="new people, best way without training"
        ),
        no_worse("fidelity", "ppd", "base", by=0.05, name="captions followed within 5 points"),
        at_most("seen", "pooled", "base", difference=0.05, name="pooled tuning, at most 55 %", guard=True),
        at_least("seen", "coin", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("seen", "coin", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale(
            (500,),
            300,
            {"seen": 2, "unseen": 2, "choices": 9, "pool": 4, "per_prompt": 1, "steps": 1, "batch": 2},
        ),
        "quick": Scale(
            (500,),
            120,
            {"seen": 2, "unseen": 2, "choices": 12, "pool": 8, "per_prompt": 1, "steps": 2, "batch": 8},
        ),
        # Judged first on seed 1000 alone; 1001 and 1002 were added with nothing else changed.
        "laptop": Scale((1000, 1001, 1002), 2400, _SIZES),
        "full": Scale((1000, 1001, 1002), 360_000, _SIZES | {"pool": 1000, "steps": 2000}),
    },
    prepare=prepare,
    run=run,
    units="person",
    preconditions=(
        Floor(
            "rerank",
            "seen",
            0.55,
            "four choices say too little: the best of eleven by them is liked in {:.0%}",
        ),
    ),
    columns={
        "seen": "better, people trained on",
        "unseen": "better, new people",
        "fidelity": "caption followed",
    },
)
