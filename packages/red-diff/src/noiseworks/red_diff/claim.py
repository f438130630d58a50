"""The claim: on 50 % inpainting RED-diff is 1 dB above DPS at equal steps, for less than half of its time a step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
)

if TYPE_CHECKING:
    from noiseworks.red_diff.options import Plan
    from torch import Tensor

BATCH = 16
ARMS = (
    Arm("start", "known pixels alone", "naive"),
    Arm("ddrm", "DDRM", "baseline"),
    Arm("pigdm", "PiGDM", "baseline"),
    Arm("dps", "DPS", "baseline"),
    Arm("plain", "RED at one noise level", "naive"),
    Arm("red-diff", "RED-diff", "method"),
)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        clean: The scenes.
        images: Arm -> restored images.
        residuals: Arm -> root mean squared residuals.
        seconds: Arm -> seconds a step of each batch, whose arms took turns.
    """

    clean: "Tensor"
    images: "dict[str, Tensor]"
    residuals: "dict[str, list[float]]"
    seconds: dict[str, list[float]]


def prepare(seed: int, context: Context) -> Shared:
    """Restore the scenes of a seed with every arm, batch by batch in turn."""
    import torch
    from noiseworks.bench.testbeds.shapes.scenes import pixel_scenes
    from noiseworks.red_diff.degrading import operator_of
    from noiseworks.red_diff.diffusers import image_shape, load_prior, prior_of
    from noiseworks.red_diff.options import Degradation
    from noiseworks.red_diff.restoring import measure, restore

    count, steps = context.settings["images"], context.settings["steps"]
    pipe = load_prior(context.model or "testbed:shapes-pixels", context.device)
    prior, shape = prior_of(pipe), image_shape(pipe)
    clean = pixel_scenes(count, seed, "test").to(context.device)
    shared = Shared(clean, {}, {arm.name: [] for arm in ARMS}, {arm.name: [] for arm in ARMS})
    parts: dict[str, list[Any]] = {arm.name: [] for arm in ARMS}
    for first in range(0, count, BATCH):
        batch = clean[first : first + BATCH]
        operator = operator_of(Degradation(task="inpaint", keep=0.5, draw=seed + first), shape)
        seeds = [1000 * seed + first + i for i in range(len(batch))]
        y = measure(operator, batch, 0.0, seeds)
        for arm in ARMS:
            found = restore(prior, operator, y, plan_of(arm.name, steps), seeds=seeds)
            parts[arm.name].append(found.images.clamp(-1, 1).cpu())
            shared.residuals[arm.name].extend(found.residual.tolist())
            shared.seconds[arm.name].append(found.seconds / max(found.steps, 1))
        context.progress(first + len(batch), count, "restoring")
    shared.images.update({name: torch.cat(made) for name, made in parts.items()})
    return shared


def plan_of(arm: str, steps: int) -> "Plan":
    """Return the method and settings of an arm, chosen on tuning seeds."""
    from noiseworks.red_diff.options import Baselines, Plan, RedDiff

    if arm == "plain":
        fixed = RedDiff(num_steps=steps, strength=0.05, clamp=True, order="fixed", fixed_timestep=50)
        return Plan("red-diff", fixed)
    baselines = {"dps": Baselines(step_size=0.25, eta=1.0), "ddrm": Baselines(eta=1.0)}.get(arm, Baselines())
    return Plan(arm, RedDiff(num_steps=steps, strength=0.025, learning_rate=0.5, clamp=True), baselines)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure what one arm restored."""
    from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
    from noiseworks.kits.pictures import strip, to_pixels, write_picture

    images, clean = shared.images[arm], shared.clean.cpu()
    label = next(one.label for one in ARMS if one.name == arm)
    picture = strip(to_pixels(images[:8] / 2 + 0.5), scale=4)
    return Measurement(
        {
            "psnr": peak_signal_to_noise(clean, images).tolist(),
            "ssim": structural_similarity(clean, images).tolist(),
            "residual": shared.residuals[arm],
            "seconds": shared.seconds[arm],
        },
        images={label: write_picture(picture, context.folder / f"{arm}.png")},
    )


CLAIM = Claim(
    method="red-diff",
    paper="A Variational Perspective on Solving Inverse Problems with Diffusion Models (ICLR 2024, arXiv 2305.04391)",
    statement="RED-diff restores better than DPS at equal steps, without differentiating through the network.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_least("psnr", "red-diff", "dps", difference=1.0),
        at_most("seconds", "red-diff", "dps", ratio=0.45),
        at_least("psnr", "red-diff", "plain", difference=0.0, name="PSNR above RED at one level"),
    ),
    scales={
        "smoke": Scale((500,), 120, {"images": 2, "steps": 4}),
        "quick": Scale((500,), 120, {"images": 16, "steps": 50}),
        "laptop": Scale((1000, 1001, 1002), 600, {"images": 32, "steps": 100}),
        "full": Scale((1000, 1001, 1002), 36_000, {"images": 256, "steps": 1000}),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "dps",
            "psnr",
            3.0,
            "DPS gains {:.1f} dB over the known pixels; a prior that helps gains 3 dB or more",
            against="start",
        ),
    ),
    units="image",
    columns={
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "residual": "residual",
        "seconds": "seconds a step",
    },
)
