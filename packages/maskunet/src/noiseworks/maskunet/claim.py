"""The claim: masks improve a frozen model, trained ones beyond LoRA, optimised ones beyond best of n.

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
    from noiseworks.maskunet.evidence import Shared

ARMS = (
    Arm("plain", "the frozen model", "baseline"),
    Arm("random", "random masks, 5 % off", "naive"),
    Arm("lora", "LoRA, as many numbers", "baseline"),
    Arm("masks", "trained masks", "method"),
    Arm("best_of", "best of 6, as many calls", "baseline"),
    Arm("optimised", "optimised masks", "method"),
)


def prepare(seed: int, context: Context) -> "Shared":
    """Load the pipeline, encode scenes and train the reader that images are optimised for."""
    from noiseworks.maskunet.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train or optimise one arm, and measure it."""
    from noiseworks.maskunet.evidence import measure

    return measure(arm, next(one.label for one in ARMS if one.name == arm), shared, context)


SMALL = {
    "images": 16,
    "steps": 2,
    "prompts": 2,
    "held": 4,
    "optimised": 1,
    "reader_scenes": 16,
    "reader_steps": 2,
}
QUICK = {
    "images": 96, "steps": 10, "prompts": 16, "held": 32, "optimised": 2, "reader_scenes": 400, "reader_steps": 60,
}  # fmt: skip
LAPTOP = {
    "images": 640, "steps": 100, "prompts": 40, "held": 96, "optimised": 6, "reader_scenes": 1500,
    "reader_steps": 300,
}  # fmt: skip

CLAIM = Claim(
    method="maskunet",
    version=2,
    paper="Not All Parameters Matter: Masking Diffusion Models for Enhancing Generation Ability (CVPR 2025, arXiv "
    "2505.03097)",
    statement="Masks on a frozen model's weights improve it: trained ones beyond LoRA, ones optimised for an image "
    "beyond best of n at equal network calls.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_most("loss", "masks", "plain", ratio=0.99, name="validation loss 1 % below the frozen model"),
        at_most("loss", "masks", "lora", ratio=1.0, name="validation loss against LoRA"),
        at_least("score", "masks", "lora", difference=0.0, name="oracle score against LoRA"),
        at_least("few", "optimised", "plain", difference=0.05, name="optimised, oracle score above plain"),
        at_least("few", "optimised", "best_of", difference=0.0, name="optimised against best of 6"),
        no_worse("score", "masks", "plain", by=0.02, name="oracle score within 2 points of the frozen model"),
    ),
    scales={
        "smoke": Scale((500,), 300, SMALL),
        "quick": Scale((500,), 300, QUICK),
        "laptop": Scale((1100, 1101, 1102), 1200, LAPTOP),  # version 1 was judged on 1000 to 1002
        "full": Scale(
            (1000,),
            360_000,
            {**LAPTOP, "steps": 9000, "images": 100_000, "prompts": 1000, "held": 1000, "optimised": 100},
        ),
    },
    prepare=prepare,
    run=run,
    units="prompt",
    columns={
        "loss": "validation loss",
        "score": "oracle score",
        "few": "oracle score, optimised prompts",
        "parameters": "trained numbers",
        "calls": "network calls",
    },
    preconditions=(
        Floor(
            "plain",
            "loss",
            0.001,
            "the frozen model's validation loss is only {:.2g}: nothing is left to gain",
        ),
    ),
    model_kind="pipeline",
)
