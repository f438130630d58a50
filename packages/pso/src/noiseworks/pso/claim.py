"""The claim: a few-step pipeline tuned on pairs stays as sharp as it was; tuned by the denoising loss, it blurs.

What is trained and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.pso.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Choose captions and targets of a seed, and draw with the untuned pipeline."""
    from noiseworks.pso.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure what it draws in the trial."""
    from noiseworks.pso.evidence import measured

    label = next(one.label for one in CLAIM.arms if one.name == arm)
    return measured(arm, label, shared, context)


CLAIM = Claim(
    method="pso",
    paper="Tuning Timestep-Distilled Diffusion Models Using Pairwise Sample Optimization (ICLR 2025, arXiv 2410.03190)",
    statement="Tuned on pairs of its own images, a few-step pipeline keeps 90 % of its sharpness where fine-tuning by "
    "the denoising loss loses 20 %; on images of 32 pixels that shows at two steps, not at four.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("supervised", "denoising loss", "baseline"),
        Arm("shuffled", "PSO, preferences by coin", "reference"),
        Arm("offline", "PSO on given pairs", "reference"),
        Arm("pso", "PSO", "method"),
    ),
    targets=(
        at_least("sharpness", "pso", "supervised", ratio=1.125, name="sharpness, of the denoising loss's"),
        at_least("sharpness", "pso", "base", ratio=0.9, name="sharpness, 90 % of untuned", guard=True),
        at_least("sharpness_4", "pso", "base", ratio=0.9, name="the same at four steps", guard=True),
        at_least("wins", "pso", "base", difference=0.15, name="nearer to a corner, 65 %", guard=True),
        no_worse("fidelity", "pso", "base", by=0.05, name="captions followed within 5 points"),
        at_least("wins", "shuffled", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("wins", "shuffled", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 2, "targets": 8, "per_prompt": 1, "steps": 1, "rounds": 1}),
        "quick": Scale((500,), 120, {"prompts": 6, "targets": 16, "per_prompt": 4, "steps": 8, "rounds": 1}),
        "laptop": Scale(
            (1000, 1001, 1002),
            1800,
            {"prompts": 24, "targets": 192, "per_prompt": 8, "steps": 400, "rounds": 20},
        ),
        "full": Scale(
            (1000, 1001, 1002),
            360_000,
            {"prompts": 24, "targets": 960, "per_prompt": 40, "steps": 6000, "rounds": 400},
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "sharpness": "sharpness",
        "untuned": "sharpness untuned",
        "wins": "nearer to a corner",
        "fidelity": "caption followed",
        "sharpness_4": "sharpness, 4 steps",
        "untuned_4": "sharpness untuned, 4 steps",
        "wins_4": "nearer to a corner, 4 steps",
        "fidelity_4": "caption followed, 4 steps",
        "seconds": "seconds of training",
    },
    preconditions=(
        Ceiling(
            "supervised",
            "sharpness",
            0.8,
            "the denoising loss leaves {:.0%} of the sharpness; there is too little blur to avoid",
            over="untuned",
        ),
    ),
)
