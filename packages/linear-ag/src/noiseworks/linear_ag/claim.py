"""The claim: Adaptive Guidance keeps the quality of 40 guided evaluations with 30, on the testbed `shapes`.

What is drawn and measured stands in `evidence`. Version 4 adds the arm that keeps the last difference after
convergence, an extra beyond the paper, with the same two targets as the paper's arm, and new judging seeds.
Version 5 adds a second extra, which measures the difference at every fifth step after a guided quarter and reuses it in
between, with the same two targets and one against full guidance in 15 steps; LinearAG at every second step draws all
prompts and gets the two targets too. New judging seeds.
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
    from noiseworks.linear_ag.evidence import Shared

ARMS = (
    Arm("cfg", "CFG, 20 steps", "baseline"),
    Arm("fewer_steps", "CFG, 15 steps", "baseline"),
    Arm("cond", "conditional only", "naive"),
    Arm("ag", "Adaptive Guidance", "method"),
    Arm("ag_kept", "Adaptive Guidance, difference kept", "method"),
    Arm("reused", "difference of every fifth step reused", "method"),
    Arm("linear_25", "LinearAG, 25 calls", "method"),
    Arm("linear_30", "LinearAG, every second step", "method"),
    Arm("first_half", "CFG in the first half", "reference"),
    Arm("last_half", "CFG in the last half", "reference"),
    Arm("alternating", "CFG every second step", "naive"),
)


def prepare(seed: int, context: Context) -> "Shared":
    """Calibrate, and draw every arm on one seed, batch by batch in turn."""
    from noiseworks.linear_ag.evidence import draw_all

    return draw_all(seed, context, tuple(arm.name for arm in ARMS))


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Measure what one arm drew."""
    from noiseworks.linear_ag.evidence import STRIP, findings, metrics_of, save_strip

    label = next(one.label for one in ARMS if one.name == arm)
    strip = save_strip(shared.drawn[arm].images[0][:STRIP], context.folder / f"{arm}.png")
    series, notes = findings(shared) if arm == "ag" else ({}, ())
    return Measurement(metrics_of(arm, shared), series=series, images={label: strip}, notes=notes)


CLAIM = Claim(
    method="linear-ag",
    paper="Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models (AAAI 2025, "
    "arXiv 2312.12487)",
    statement="Adaptive Guidance keeps the quality of guidance with 25 % fewer network evaluations.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_most("calls", "ag", "cfg", ratio=0.75),
        no_worse("score", "ag", "cfg", by=0.01, name="oracle score within 1 point"),
        at_most("calls", "ag_kept", "cfg", ratio=0.75, name="network calls, difference kept"),
        no_worse("score", "ag_kept", "cfg", by=0.01, name="oracle score within 1 point, difference kept"),
        at_most("calls", "reused", "cfg", ratio=0.75, name="network calls, difference reused"),
        no_worse("score", "reused", "cfg", by=0.01, name="oracle score within 1 point, difference reused"),
        at_least(
            "score",
            "reused",
            "fewer_steps",
            difference=0.0,
            name="oracle score over 15 steps, difference reused",
        ),
        at_most("calls", "linear_30", "cfg", ratio=0.75, name="network calls, LinearAG"),
        no_worse("score", "linear_30", "cfg", by=0.01, name="oracle score within 1 point, LinearAG"),
        at_least(
            "score", "ag", "cond", difference=0.05, name="oracle score above conditional only", guard=True
        ),
        at_most("seconds", "ag", "cfg", ratio=0.80, name="wall-clock", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, {"prompts": 1, "others": 1, "calibration": 1}),
        "quick": Scale((500,), 120, {"prompts": 18, "others": 8, "calibration": 12}),
        "laptop": Scale((4000, 4001, 4002), 3600, {"prompts": 192, "others": 32, "calibration": 96}),
        "full": Scale(
            (1000, 1001, 1002, 1003, 1004), 36_000, {"prompts": 200, "others": 200, "calibration": 200}
        ),
    },
    prepare=prepare,
    run=run,
    units="prompt",
    columns={
        "calls": "network calls",
        "score": "oracle score",
        "ssim": "SSIM to CFG",
        "latent_error": "latent error to CFG",
        "seconds": "seconds per image",
    },
    preconditions=(
        Floor(
            "cfg",
            "score",
            0.05,
            "guidance changes the oracle's score by {:.3f} on this model; the claim needs 0.05 or more",
            against="cond",
        ),
    ),
    version=5,
)
