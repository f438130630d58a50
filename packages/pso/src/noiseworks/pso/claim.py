"""The claim: tuned on pairs, a four-step pipeline stays as sharp as it was; tuned by the denoising loss, it blurs.

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
    statement="Tuned on pairs of a target and its own image, a four-step pipeline keeps 90 % of its sharpness at four "
    "steps where fine-tuning by the denoising loss loses 20 %.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("supervised", "denoising loss", "baseline"),
        Arm("shuffled", "PSO, pairs turned by coin", "reference"),
        Arm("online", "PSO online, by the nearness", "method"),
        Arm("pso", "PSO on given pairs", "method"),
    ),
    targets=(
        at_least(
            "sharpness", "pso", "supervised", ratio=1.125, name="sharpness at 4 steps, over denoising loss"
        ),
        at_least(
            "sharpness", "pso", "base", ratio=0.9, name="sharpness at 4 steps, 90 % of untuned", guard=True
        ),
        at_least("wins", "pso", "base", difference=0.15, name="images nearer to a corner, 65 %", guard=True),
        no_worse("fidelity", "pso", "base", by=0.05, name="captions followed within 5 points"),
        at_least("wins", "shuffled", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("wins", "shuffled", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 2, "targets": 8, "per_prompt": 2, "steps": 1}),
        "quick": Scale((500,), 120, {"prompts": 6, "targets": 16, "per_prompt": 4, "steps": 4}),
        "laptop": Scale(
            (1000, 1001, 1002), 900, {"prompts": 24, "targets": 96, "per_prompt": 6, "steps": 200}
        ),
        "full": Scale(
            (1000, 1001, 1002), 360_000, {"prompts": 24, "targets": 600, "per_prompt": 40, "steps": 5000}
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "sharpness": "sharpness",
        "untuned_sharpness": "sharpness untuned",
        "wins": "better than untuned",
        "corner": "nearness to a corner",
        "fidelity": "caption followed",
        "seconds": "seconds of training",
    },
    preconditions=(
        Ceiling(
            "supervised",
            "sharpness",
            0.8,
            "the denoising loss leaves {:.0%} of the sharpness at four steps; there is no blur to avoid",
            over="untuned_sharpness",
        ),
    ),
)
