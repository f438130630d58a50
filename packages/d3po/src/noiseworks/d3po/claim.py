"""The claim: preferences over a pipeline's own images tune it nearly as well as the reward itself would.

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
    from noiseworks.d3po.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Choose the prompts of a seed and draw the trial with the untuned pipeline."""
    from noiseworks.d3po.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure what it draws in the trial."""
    from noiseworks.d3po.evidence import measured, save_strip

    metrics, draws = measured(arm, shared, context)
    label = next(one.label for one in CLAIM.arms if one.name == arm)
    return Measurement(metrics, images={label: save_strip(draws, context.folder / f"{arm}.png")})


CLAIM = Claim(
    method="d3po",
    paper="Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model (CVPR 2024, arXiv 2311.13231)",
    statement="Told only which of two images is better, D3PO tunes a pipeline about as well as reinforcement learning "
    "with the true reward does at as many images.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("supervised", "fine-tuned on the better images", "baseline"),
        Arm("ddpo", "DDPO with the true score", "baseline"),
        Arm("shuffled", "D3PO, preferences by coin", "reference"),
        Arm("d3po", "D3PO", "method"),
    ),
    targets=(
        at_least("wins", "d3po", "base", difference=0.15, name="images better than untuned, 65 %"),
        at_least("progress", "d3po", "ddpo", difference=0.0, name="gain over 80 % of DDPO's"),
        at_least(
            "gain", "d3po", "supervised", difference=0.0, name="gain over fine-tuning on the better images"
        ),
        no_worse("fidelity", "d3po", "base", by=0.05, name="captions followed within 5 points"),
        at_least("wins", "shuffled", "base", difference=-0.05, name="control, at least 45 %", guard=True),
        at_most("wins", "shuffled", "base", difference=0.05, name="control, at most 55 %", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 2, "per_prompt": 1, "rounds": 1, "batch": 2}),
        "quick": Scale((500,), 120, {"prompts": 8, "per_prompt": 2, "rounds": 1, "batch": 4}),
        "laptop": Scale((1000, 1001, 1002), 900, {"prompts": 24, "per_prompt": 6, "rounds": 5, "batch": 32}),
        "full": Scale(
            (1000, 1001, 1002), 360_000, {"prompts": 48, "per_prompt": 10, "rounds": 200, "batch": 20}
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "wins": "better than untuned",
        "brightness": "hidden score",
        "gain": "gain in hidden score",
        "progress": "gain, of DDPO 80 %",
        "fidelity": "caption followed",
    },
    preconditions=(
        Floor(
            "ddpo", "gain", 0.02, "even with the true score the gain is only {:.3f}; nothing can be compared"
        ),
    ),
)
