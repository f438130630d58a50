"""The claim: five data-free experts guide better than a single student, and both better than the guide as it is.

What is trained and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least

if TYPE_CHECKING:
    from noiseworks.ppap.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Train the clean classifier, its students and the supervised ceiling."""
    from noiseworks.ppap.evidence import prepare

    return prepare(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Draw the images of an arm and let the oracle read them."""
    from noiseworks.ppap.evidence import measured

    return measured(arm, next(one.label for one in CLAIM.arms if one.name == arm), shared, context)


def _sizes(**changed: object) -> dict[str, object]:
    sizes = {"images": 96, "labelled": 6000, "clean_steps": 400, "synthetic": 1000, "steps": 1500}
    return {**sizes, "scale": 3.0, **changed}


CLAIM = Claim(
    method="ppap",
    paper="Towards Practical Plug-and-Play Diffusion Models (CVPR 2023, arXiv 2212.05973)",
    statement="Five experts that learned from a clean classifier without data guide a diffusion model to the wanted "
    "class 5 points more often than one student does, at equal training.",
    testbed="shapes",
    arms=(
        Arm("unguided", "no guidance", "naive"),
        Arm("off_the_shelf", "the clean classifier on noise", "naive"),
        Arm("single", "one student for all noise", "baseline"),
        Arm("denoised", "the clean classifier behind the denoiser", "reference"),
        Arm("supervised", "a classifier trained on noise with labels", "reference"),
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
        "smoke": Scale((500,), 120, _sizes(images=2, labelled=150, clean_steps=2, synthetic=4, steps=5)),
        "quick": Scale(
            (500,), 120, _sizes(images=24, labelled=1500, clean_steps=60, synthetic=100, steps=60)
        ),
        "laptop": Scale((1000, 1001, 1002), 900, _sizes()),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            _sizes(images=960, labelled=30_000, clean_steps=4000, synthetic=20_000, steps=20_000),
        ),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "supervised",
            "success",
            0.15,
            "a classifier that was trained on noise raises the success by only {:.0%}; guidance does nothing here",
            against="unguided",
        ),
    ),
    units="image",
    columns={"success": "oracle reads the class", "seconds": "seconds an image"},
)
