"""The claim: five data-free experts guide better than a single student, and both better than the guide as it is.

What is trained and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least

if TYPE_CHECKING:
    from noiseworks.ppap.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Train the clean classifier, the judge, the students and the supervised ceiling."""
    from noiseworks.ppap.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Draw the images of an arm and let the judge read them."""
    from noiseworks.ppap.evidence import measured

    return measured(arm, next(one.label for one in CLAIM.arms if one.name == arm), shared, context)


def _sizes(**changed: object) -> dict[str, object]:
    sizes = {"copies": 30, "clean_steps": 400, "synthetic": 1000, "steps": 2000}
    return {**sizes, "scale": 3.0, "others": (1.0, 7.5), **changed}


CLAIM = Claim(
    method="ppap",
    paper="Towards Practical Plug-and-Play Diffusion Models (CVPR 2023, arXiv 2212.05973)",
    statement="Five experts that learned from a clean classifier without data guide a diffusion model to the wanted "
    "class 5 points more often than one student does, at equal training.",
    testbed="digits",
    arms=(
        Arm("unguided", "no guidance", "naive"),
        Arm("off_the_shelf", "the clean classifier on noise", "naive"),
        Arm("single", "one student for all noise", "baseline"),
        Arm("fresh", "five experts, each begun with the classifier", "reference"),
        Arm("denoised", "the clean classifier behind the denoiser", "reference"),
        Arm("supervised", "five whole classifiers trained on noise with labels", "reference"),
        Arm("ppap", "PPAP, five experts", "method"),
    ),
    targets=(
        at_least("success", "ppap", "single", difference=0.05, name="success, 5 points over one student"),
        at_least(
            "success",
            "ppap",
            "off_the_shelf",
            difference=0.1,
            name="success, 10 points over the guide as it is",
        ),
    ),
    scales={
        "smoke": Scale((500,), 120, _sizes(copies=1, clean_steps=2, synthetic=10, steps=5)),
        "quick": Scale((500,), 120, _sizes(copies=4, clean_steps=150, synthetic=150, steps=150)),
        "laptop": Scale((1000, 1001, 1002), 900, _sizes()),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            _sizes(copies=300, clean_steps=4000, synthetic=20_000, steps=20_000),
        ),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "supervised",
            "success",
            0.3,
            "classifiers that were trained on noise raise the success by only {:.0%}; guidance does nothing here",
            against="unguided",
        ),
        Floor(
            "supervised",
            "success",
            0.05,
            "classifiers that were trained on noise guide only {:.0%} better than one that was not",
            against="off_the_shelf",
        ),
    ),
    units="image",
    columns={
        "success": "judge reads the class",
        "distance": "Fréchet distance to test digits",
        "success at 1": "success at scale 1",
        "success at 7.5": "success at scale 7.5",
        "seconds": "seconds an image",
    },
    version=2,
)
