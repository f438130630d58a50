"""The claim: of all ways to switch off channels by timestep, sliding windows cost the least, or gain.

DiTs of equal size train on the digits from the same weights, in the same order, with the same noise; the held-out
denoising loss is measured on one bank of noise. What the paper gains over the plain model (FID 12.6 -> 8.9 at DiT-L,
400,000 steps) is an effect of large models and long training, so that the plain model is shown and not judged by.
"""

from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, at_most

if TYPE_CHECKING:
    from torch import Tensor


def prepare(seed: int, context: Context) -> "tuple[int, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]":
    """Load the digits: the seed, what is learned and what is held out."""
    from noiseworks.kits.backbones import load_images

    return seed, load_images("digits", needs="dtr"), load_images("digits", needs="dtr", split="test")


def run(arm: str, shared: Any, context: Context) -> Measurement:
    """Train one arm and measure its held-out loss, image by image."""
    import torch
    from noiseworks.core.schedules import table_schedule
    from noiseworks.dtr.options import Routing
    from noiseworks.dtr.training import fit_routed
    from noiseworks.kits.backbones import DiT, DiTConfig, Recipe, held_out_loss

    (seed, (images, labels), held), sizes = shared, context.settings
    kinds = {"plain": {"beta": 1.0}, "random": {"kind": "random", "routing_seed": seed}, "window": {}}
    recipe = Recipe(max_steps=sizes["steps"], seed=seed, device=context.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiT(DiTConfig(depth=sizes["depth"], width=sizes["width"], heads=4))
    trained = fit_routed(model, Routing(**kinds[arm]), images, labels, recipe, progress=False)
    losses = held_out_loss(trained.to(context.device), *held, table_schedule(recipe.schedule), seed=seed)
    tenths = [round(0.05 + 0.1 * part, 2) for part in range(losses.shape[1])]
    return Measurement(
        {"loss": losses.mean(1).tolist()}, series={"loss by timestep": (tenths, losses.mean(0).tolist())}
    )


def sizes(steps: int, width: int = 64, depth: int = 3) -> dict[str, int]:
    """Return the settings of a scale."""
    return {"steps": steps, "width": width, "depth": depth}


CLAIM = Claim(
    method="dtr",
    paper="Denoising Task Routing for Diffusion Models (ICLR 2024, arXiv 2310.07138)",
    statement="Windows of channels that slide with the timestep learn better than random channels of the same number.",
    testbed="digits",
    arms=(
        Arm("plain", "all channels", "reference"),
        Arm("random", "random channels", "baseline"),
        Arm("window", "sliding windows (DTR)", "method"),
    ),
    targets=(at_most("loss", "window", "random", ratio=0.99),),
    scales={
        "smoke": Scale((500,), 120, sizes(2, 16, 1)),
        "quick": Scale((500,), 180, sizes(120, 32, 2)),
        "laptop": Scale((1000, 1001, 1002), 1800, sizes(1000)),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={"loss": "held-out denoising loss"},
)
