"""The claim: at equal images, branches and late steps first follow captions better than DDPO, and stay diverse.

What is trained and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Ceiling, Claim, Context, Floor, Measurement, Scale, at_least, at_most

if TYPE_CHECKING:
    from noiseworks.b2_diffurl.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Choose the captions of a seed, and draw its trial with the untuned pipeline."""
    from noiseworks.b2_diffurl.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure what it draws in the trial."""
    from noiseworks.b2_diffurl.evidence import measured

    label = next(one.label for one in CLAIM.arms if one.name == arm)
    return measured(arm, label, shared, context)


CLAIM = Claim(
    method="b2-diffurl",
    paper="Towards Better Alignment: Training Diffusion Models with Reinforcement Learning Against Sparse Rewards "
    "(CVPR 2025, arXiv 2503.11240)",
    statement="With a reward of three values on the finished image, training the last steps first on branches follows "
    "captions 5 points better than DDPO at as many scored images, and loses at most a tenth of the diversity.",
    testbed="shapes",
    arms=(
        Arm("base", "untuned", "naive"),
        Arm("ddpo", "DDPO", "baseline"),
        Arm("progressive", "late steps first, no branches", "baseline"),
        Arm("branches", "branches, all steps at once", "baseline"),
        Arm("forward", "branches, early steps first", "reference"),
        Arm("shuffled", "B2-DiffuRL, shuffled rewards", "reference"),
        Arm("b2", "B2-DiffuRL", "method"),
    ),
    targets=(
        at_least("match", "b2", "ddpo", difference=0.05, name="caption followed, 5 points over DDPO"),
        at_least("diversity", "b2", "base", ratio=0.9, name="diversity, 90 % of the untuned", guard=True),
        at_least("match", "b2", ("progressive", "branches"), difference=0.0, name="over either part alone"),
        at_least("match", "b2", "forward", difference=0.0, name="over early steps first"),
        at_most(
            "match",
            "shuffled",
            "base",
            difference=0.03,
            name="control, within 3 points of untuned",
            guard=True,
        ),
    ),
    scales={
        "smoke": Scale(
            (500,),
            300,
            {"candidates": 3, "looks": 2, "prompts": 2, "per_prompt": 2, "stages": 1, "groups": 2},
        ),
        "quick": Scale(
            (500,),
            120,
            {"candidates": 4, "looks": 2, "prompts": 2, "per_prompt": 6, "stages": 1, "groups": 2},
        ),
        "laptop": Scale(
            (1000, 1001, 1002),
            2400,
            {"candidates": 8, "looks": 32, "prompts": 2, "per_prompt": 96, "stages": 16, "groups": 8},
        ),
        "full": Scale(
            (1000, 1001, 1002),
            360_000,
            {"candidates": 90, "looks": 32, "prompts": 45, "per_prompt": 12, "stages": 100, "groups": 256},
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "match": "caption followed",
        "right": "all of the caption right",
        "diversity": "diversity",
        "seconds": "seconds of training",
        "calls": "denoiser's rows",
    },
    preconditions=(
        Floor("base", "right", 0.2, "the untuned pipeline is right in only {:.0%} of the draws"),
        Ceiling("base", "right", 0.5, "the untuned pipeline is right in {:.0%} of the draws already"),
    ),
)
