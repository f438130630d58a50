"""The claim: winners alone teach a pipeline what they have in common, and the flip makes it learn more of it.

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
    from noiseworks.seppo.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Choose the winners of a seed and draw the trial with the untuned pipeline."""
    from noiseworks.seppo.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure what it draws in the trial."""
    from noiseworks.seppo.evidence import measured

    label = next(one.label for one in CLAIM.arms if one.name == arm)
    return measured(arm, label, shared, context)


CLAIM = Claim(
    method="seppo",
    paper="SePPO: Semi-Policy Preference Optimization for Diffusion Alignment (arXiv 2410.05255)",
    statement="From good images alone, with all earlier checkpoints as opponents and images flipped by the anchor, a "
    "pipeline draws good images more often than without the flip, and than fine-tuning or SPIN make it.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("supervised", "fine-tuned on the winners", "baseline"),
        Arm("initial", "no flip, against the initial model", "baseline"),
        Arm("spin", "SPIN: no flip, against the latest", "baseline"),
        Arm("unflipped", "SePPO without the flip", "baseline"),
        Arm("dpo", "Diffusion-DPO, with losers", "reference"),
        Arm("own", "SePPO, winners of its own drawing", "reference"),
        Arm("seppo", "SePPO", "method"),
    ),
    targets=(
        at_least("wins", "seppo", "unflipped", difference=0.0, name="wins, with the flip over without"),
        at_least("wins", "seppo", "supervised", difference=0.0, name="wins, over fine-tuning"),
        at_least("wins", "seppo", ("spin", "initial"), difference=0.0, name="wins, over one opponent"),
        at_least("wins", "seppo", "base", difference=0.15, name="wins over untuned, 65 %"),
        no_worse("fidelity", "seppo", "base", by=0.05, name="captions followed within 5 points"),
        at_least("wins", "own", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("wins", "own", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale(
            (500,),
            300,
            {"winners": 4, "prompts": 2, "per_prompt": 1, "updates": 1, "iterations": 2, "batch": 2},
        ),
        "quick": Scale(
            (500,),
            120,
            {"winners": 8, "prompts": 4, "per_prompt": 1, "updates": 1, "iterations": 2, "batch": 4},
        ),
        "laptop": Scale(
            (1000, 1001, 1002),
            1200,
            {"winners": 96, "prompts": 24, "per_prompt": 3, "updates": 6, "iterations": 4, "batch": 16},
        ),
        "full": Scale(
            (1000, 1001, 1002),
            360_000,
            {"winners": 2000, "prompts": 48, "per_prompt": 10, "updates": 20, "iterations": 6, "batch": 128},
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "wins": "better than untuned, as read",
        "quality": "rule kept, as read",
        "wins_pixels": "better than untuned, by pixels",
        "fidelity": "caption followed",
        "flipped": "flipped at the end",
        "truth": "flip and truth, correlation",
        "calls": "denoiser's rows",
    },
    preconditions=(
        Floor("supervised", "wins", 0.55, "fine-tuning on the winners wins only {:.0%}; they teach nothing"),
    ),
)
