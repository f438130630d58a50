"""The claim: masked latents learn three times as fast as masked pixels, with features that are as good.

The pixels' auto-encoder has 64 tokens an image and a fixed mask ratio, the latents' 16 and one that grows; the network
is otherwise the same. All arms of 16 tokens get as many steps, at most what the pixels' time pays for. What is measured
stands in `evidence`.
"""

from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.lmd.evidence import Shared


def prepare(seed: int, context: Context) -> "Shared":
    """Make scenes and latents, and train the pixels' auto-encoder, whose last loss is the reference."""
    from noiseworks.lmd.evidence import prepare_seed

    return prepare_seed(seed, context)


def run(arm: str, shared: "Shared", context: Context) -> Measurement:
    """Train one arm and measure it."""
    from noiseworks.lmd.evidence import measure_arm

    return measure_arm(arm, shared, context)


def sizes(steps: int, every: int, **others: Any) -> dict[str, Any]:
    """Return the settings of a scale: `steps` of the pixels, twice as many of all that have a quarter of the tokens."""
    network = {
        "depth": 3,
        "width": 96,
        "heads": 4,
        "decoder_depth": 2,
        "decoder_width": 64,
        "decoder_heads": 4,
    }
    usual = {"scenes": 8192, "batch": 64, "shots": 100, "judged": 128}
    return {"steps": steps, "short": 2 * steps, "every": every, "network": network} | usual | others


TINY = {"depth": 1, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
CLAIM = Claim(
    method="lmd",
    paper="LMD: Faster Image Reconstruction with Latent Masking Diffusion (AAAI 2024, arXiv 2312.07971)",
    statement="Masked latents reach the loss of masked pixels in a third of the time, with features that are as good.",
    testbed="shapes",
    arms=(
        Arm("raw", "raw pixels", "reference"),
        Arm("untrained", "untrained encoder of latents", "reference"),
        Arm("pixels", "masked pixels, 64 tokens (MAE)", "baseline"),
        Arm("coarse", "masked pixels, 16 tokens", "naive"),
        Arm("fixed", "masked latents, ratio 0.75", "baseline"),
        Arm("lmd", "masked latents, growing ratio (LMD)", "method"),
    ),
    targets=(
        at_most("seconds", "lmd", "pixels", ratio=1 / 3),
        at_most("milliseconds", "lmd", "pixels", ratio=1 / 3),
        at_least("reached", "lmd", "pixels", difference=0.0, guard=True),
        no_worse("probe", "lmd", "pixels", by=0.02),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes(2, 1, network=TINY, scenes=160, batch=8, shots=2, judged=8)),
        "quick": Scale((500,), 180, sizes(40, 10, scenes=600, shots=10, judged=32)),
        "laptop": Scale((1000, 1001, 1002), 1800, sizes(800, 50)),
    },
    preconditions=(
        Ceiling("pixels", "loss", 0.7, "masked pixels still have {:.0%} of the error of the mean image"),
    ),
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "seconds": "seconds to the reference loss",
        "with_encoding": "with the encoding of the latents",
        "milliseconds": "training, milliseconds an image",
        "reached": "reached the reference loss",
        "loss": "error of hidden pixels, of the mean image's",
        "probe": "few-shot accuracy of shape, colour and place",
        "psnr025": "PSNR in dB, a quarter hidden",
        "psnr05": "PSNR in dB, half hidden",
        "psnr075": "PSNR in dB, three quarters hidden",
    },
)
