"""The claim: experts gated by the timestep learn better than a plain DiT of as many parameters.

DiTs train on the digits with the same data order and noise; the plain one has an MLP of 5.5 widths instead of 4, which
is as many parameters as three experts a block. Sampling is timed on wider models, whose weights do not matter.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, at_least, at_most

if TYPE_CHECKING:
    from noiseworks.core.timing import Times
    from torch import Tensor

WIDE = 5.5  # widths of the plain model's MLP: 2 (5.5 - 4) D² = 3 D²


@dataclass
class Shared:
    """What the arms of a seed share: the data, and the times of one network call, plain and with folded experts."""

    seed: int
    learned: "tuple[Tensor, Tensor]"
    held: "tuple[Tensor, Tensor]"
    times: "dict[str, Times]"


def prepare(seed: int, context: Context) -> Shared:
    """Load the digits and time one call of a sampler."""
    import torch
    from noiseworks.core.timing import in_turns
    from noiseworks.kits.backbones import DiT, DiTConfig, load_images
    from noiseworks.switch_dit.model import SwitchDiT

    width = context.settings["timed_width"]
    config = DiTConfig(depth=4, width=width, heads=6, image_size=16, channels=4)
    arms = {"plain": DiT(config), "switch": SwitchDiT(config)}
    x, t, y = torch.randn(8, 4, 16, 16), torch.full((8,), 500), torch.arange(8)
    with torch.inference_mode():
        calls = {name: lambda turn, model=model.eval(): model(x, t, y) for name, model in arms.items()}
        times = in_turns(calls, repeats=context.settings["turns"])
    held = load_images("digits", needs="switch-dit", split="test")
    return Shared(seed, load_images("digits", needs="switch-dit"), held, times)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Train one arm, and measure its held-out loss, its gates and its time."""
    import torch
    from noiseworks.core.schedules import table_schedule
    from noiseworks.kits.backbones import DiT, DiTConfig, Recipe, fit_denoiser, held_out_loss
    from noiseworks.switch_dit import Switch, SwitchDiT, fit_switch

    sizes = context.settings
    shape = {"depth": sizes["depth"], "width": sizes["width"], "heads": 4}
    recipe = Recipe(max_steps=sizes["steps"], seed=shared.seed, device=context.device)
    extra: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shared.seed)
        if arm == "plain":
            model = fit_denoiser(DiT(DiTConfig(**shape, mlp=WIDE)), *shared.learned, recipe, progress=False)
        else:
            switch = Switch(prior_weight=0.0 if arm == "no_prior" else 1.0)
            model = fit_switch(SwitchDiT(DiTConfig(**shape), switch), *shared.learned, recipe, progress=False)
            busiest = model.routing_table().double().mean(0).amax(1).min()
            extra = {"agreement": model.agreement(), "shared": float(busiest)}
    if arm in shared.times:
        extra["seconds"] = list(shared.times[arm].seconds)
    schedule = table_schedule(recipe.schedule)
    losses = held_out_loss(model.to(context.device), *shared.held, schedule, seed=shared.seed)
    return Measurement({"loss": losses.mean(1).tolist()} | extra)


def sizes(steps: int, width: int = 64, depth: int = 3, timed_width: int = 384, turns: int = 15) -> dict:
    """Return the settings of a scale."""
    return {"steps": steps, "width": width, "depth": depth, "timed_width": timed_width, "turns": turns}


CLAIM = Claim(
    method="switch-dit",
    paper="Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts (ECCV 2024, "
    "arXiv 2403.09176)",
    statement="Experts gated by the timestep learn better than as many parameters in a plain DiT.",
    testbed="digits",
    arms=(
        Arm("plain", "plain DiT of as many parameters", "baseline"),
        Arm("no_prior", "experts without the prior loss", "naive"),
        Arm("switch", "Switch-DiT", "method"),
    ),
    targets=(
        at_most("loss", "switch", "plain", ratio=0.99),
        at_least("agreement", "switch", "no_prior", difference=0.1),
        at_most("seconds", "switch", "plain", ratio=1.12, guard=True, name="a call of the folded sampler"),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes(2, 16, 1, 48, 3)),
        "quick": Scale((500,), 180, sizes(100, 32, 2, 96, 7)),
        "laptop": Scale((1000, 1001, 1002), 1800, sizes(1000)),
    },
    prepare=prepare,
    run=run,
    units="image",
    columns={
        "loss": "held-out denoising loss",
        "agreement": "gates that agree with the prior",
        "shared": "timesteps of a block's busiest expert, least of the blocks",
        "seconds": "seconds a call",
    },
)
