"""The claim: DiffusionGuard makes inpainting fail on masks that it has not seen, beyond whole-image defences.

What is protected, edited and read stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least

if TYPE_CHECKING:
    from noiseworks.diffusionguard.evidence import Shared

ARMS = (
    Arm("unprotected", "unprotected", "reference"),
    Arm("random", "random signs", "naive"),
    Arm("photoguard", "PhotoGuard, encoder", "baseline"),
    Arm("photoguard-diffusion", "PhotoGuard, diffusion", "baseline"),
    Arm("advdm", "AdvDM", "baseline"),
    Arm("mist", "Mist", "baseline"),
    Arm("sdst", "SDST", "baseline"),
    Arm("no-augmentation", "DiffusionGuard, one mask", "baseline"),
    Arm("diffusionguard", "DiffusionGuard", "method"),
)
GLOBAL = ("photoguard", "photoguard-diffusion", "advdm", "mist", "sdst")


def prepare(seed: int, context: Context) -> "Shared":
    """Draw scenes, masks and prompts of one seed, and edit the originals."""
    from noiseworks.diffusionguard.evidence import edit_originals

    return edit_originals(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Protect by one defence, edit with every mask, and read what came out."""
    from noiseworks.diffusionguard.evidence import measure

    return measure(arm, shared, context)


CLAIM = Claim(
    method="diffusionguard",
    paper="DiffusionGuard: A Robust Defense Against Malicious Diffusion-based Image Editing (ICLR 2025, "
    "arXiv 2410.05694)",
    statement="Images protected by DiffusionGuard resist diffusion inpainting under masks that were not seen, better "
    "than by whole-image defences at equal cost.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_least(
            "unseen", "diffusionguard", "unprotected", difference=0.5, name="protected under unseen masks"
        ),
        at_least(
            "unseen", "diffusionguard", "no-augmentation", difference=0.1, name="gain of mask augmentation"
        ),
        at_least(
            "unseen", "diffusionguard", GLOBAL, difference=0.15, name="gain over the best whole-image defence"
        ),
    ),
    # The unseen masks and arms are the paper's; images are few so that the three seeds fit a laptop's minutes.
    scales={
        "smoke": Scale((500,), 300, {"images": 2, "steps": 4, "pool": 2, "edit_steps": 1, "purifiers": 3}),
        "quick": Scale((500,), 120, {"images": 2, "steps": 4, "pool": 4, "edit_steps": 8, "purifiers": 0}),
        # 64 steps are 16 of the differentiable sampler, which use the budget up.
        "laptop": Scale(
            (1000, 1001, 1002), 3600, {"images": 4, "steps": 64, "pool": 16, "edit_steps": 10, "purifiers": 3}
        ),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            {"images": 42, "steps": 800, "pool": 200, "edit_steps": 50, "purifiers": 3},
        ),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "unseen": "protected, unseen masks",
        "seen": "protected, seen mask",
        "jpeg-75": "protected after JPEG, box",
        "crop-resize": "protected after cropping, box",
        "adverse-cleaner": "protected after AdverseCleaner, box",
        "norm_ratio": "predicted noise at the first step, protected to original",
        "edit_psnr": "PSNR of edits to clean ones",
        "ssim": "SSIM to the original",
        "unet_passes": "U-Net passes an image",
        "seconds": "seconds an image",
        "succeeds": "clean edits that come out",
    },
    preconditions=(
        Floor(
            "unprotected",
            "succeeds",
            0.85,
            "the editor gets only {:.0%} of the edits of unprotected images right; the claim needs 85 %",
        ),
    ),
)
