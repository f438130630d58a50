"""The claim: score distillation protects as strongly as attacks through the U-Net, in less time and memory.

What is protected, edited and measured stands in `evidence`.
"""

from typing import TYPE_CHECKING

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least, at_most

if TYPE_CHECKING:
    from noiseworks.diff_protect.evidence import Shared

ARMS = (
    Arm("random", "random signs", "naive"),
    Arm("photoguard", "PhotoGuard", "baseline"),
    Arm("advdm+", "AdvDM", "baseline"),
    Arm("advdm-", "AdvDM, descending", "baseline"),
    Arm("mist", "Mist", "baseline"),
    Arm("sds+", "SDS", "method"),
    Arm("sds-", "SDS, descending", "method"),
    Arm("sdst-", "SDST", "method"),
)


def prepare(seed: int, context: Context) -> "Shared":
    """Draw the pictures of one seed and edit the originals."""
    from noiseworks.diff_protect.evidence import edit_originals

    return edit_originals(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Protect by one method, edit, and measure strength, visibility and cost."""
    from noiseworks.diff_protect.evidence import measure

    return measure(arm, shared, context)


CLAIM = Claim(
    method="diff-protect",
    paper="Toward effective protection against diffusion based mimicry through score distillation (ICLR 2024, "
    "arXiv 2311.12832)",
    statement="Score distillation protects within 10 % of AdvDM's strength at no more than 60 % of its time and "
    "memory, and its descending form is less visible.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_most("seconds", "sds+", "advdm+", ratio=0.6, name="time of SDS against AdvDM"),
        at_most("saved_bytes", "sds+", "advdm+", ratio=0.6, name="memory of SDS against AdvDM"),
        at_least("moved", "sds+", "advdm+", ratio=0.9, name="strength, ascending"),
        at_least("moved", "sds-", "advdm-", ratio=0.9, name="strength, descending"),
        at_least("ssim", "sds-", "sds+", difference=0.01, name="less visible when descending"),
    ),
    scales={
        "smoke": Scale((500,), 300, {"images": 2, "steps": 3, "edit_steps": 4}),
        "quick": Scale((500,), 120, {"images": 6, "steps": 16, "edit_steps": 20}),
        "laptop": Scale((1000, 1001, 1002), 900, {"images": 12, "steps": 100, "edit_steps": 20}),
        "full": Scale((1000, 1001, 1002), 36_000, {"images": 60, "steps": 100, "edit_steps": 50}),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "moved": "feature distance of edits to clean ones",
        "edit_psnr": "PSNR of edits to clean ones",
        "failed": "edits that fail",
        "purified": "feature distance after JPEG",
        "ssim": "SSIM to the original",
        "fine_share": "share of fine change",
        "shift": "latent shift",
        "seconds": "seconds a step",
        "saved_bytes": "bytes kept for the backward pass",
        "succeeds": "clean edits that come out",
    },
    preconditions=(
        Floor(
            "advdm+",
            "shift_ratio",
            2.0,
            "AdvDM moves latents only {:.1f} times as far as random signs: the encoder is too smooth to be attacked",
        ),
    ),
)
