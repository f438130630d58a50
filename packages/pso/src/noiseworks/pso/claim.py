"""The claim: a few-step pipeline tuned on pairs keeps its edges; tuned by the denoising loss, it blurs.

What is trained and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
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
    statement="Tuned on pairs of its own images, a few-step pipeline keeps 90 % of its edges where fine-tuning by the "
    "denoising loss loses 20 %; on images of 32 pixels that shows at one step.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("given", "images given to the denoising loss", "reference"),
        Arm("supervised", "denoising loss", "baseline"),
        Arm("shuffled", "PSO, preferences by coin", "reference"),
        Arm("pso", "PSO", "method"),
    ),
    targets=(
        at_least("edges", "pso", "supervised", ratio=1.125, name="edges, of the denoising loss's"),
        at_least("edges", "pso", "base", ratio=0.9, name="edges, 90 % of untuned", guard=True),
        at_least("edges_4", "pso", "base", ratio=0.9, name="edges at four steps, 90 %", guard=True),
        at_least("wins", "pso", "base", difference=0.15, name="nearer to a corner, 65 %"),
        at_least(
            "moved", "pso", "supervised", difference=0.0, name="way to the corner, over the denoising loss"
        ),
        no_worse("fidelity", "pso", "base", by=0.05, name="captions followed within 5 points"),
        no_worse("fidelity_4", "pso", "base", by=0.05, name="captions at four steps, within 5 points"),
        at_least("apart", "shuffled", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("apart", "shuffled", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 2, "targets": 8, "per_prompt": 1, "steps": 1, "rounds": 1}),
        "quick": Scale((500,), 120, {"prompts": 6, "targets": 16, "per_prompt": 4, "steps": 8, "rounds": 1}),
        "laptop": Scale(
            (1000, 1001, 1002),
            1800,
            {"prompts": 24, "targets": 192, "per_prompt": 4, "steps": 300, "rounds": 20},
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
        "edges": "edges",
        "untuned": "edges untuned",
        "sharpness": "edges in units of contrast",
        "fidelity": "caption followed",
        "edges_2": "edges, 2 steps",
        "edges_4": "edges, 4 steps",
        "fidelity_4": "caption followed, 4 steps",
        "wins": "nearer to a corner, 4 steps",
        "apart": "the same, from other noise",
        "moved": "way to the corner, 4 steps",
        "seconds": "seconds of training",
    },
    preconditions=(
        Floor(
            "given",
            "edges",
            0.95,
            "the given images have {:.0%} of the untuned pipeline's edges; what follows them must lose some",
            over="untuned",
        ),
        Ceiling(
            "supervised",
            "edges",
            0.8,
            "the denoising loss leaves {:.0%} of the edges; there is too little blur to avoid",
            over="untuned",
        ),
    ),
)
