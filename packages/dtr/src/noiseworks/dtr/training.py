"""A routed DiT that is trained, saved and loaded together with its routing."""

from dataclasses import asdict
from pathlib import Path

from noiseworks.dtr.attaching import NAME, attach_routing
from noiseworks.dtr.options import Routing
from noiseworks.kits.backbones import DiT, Recipe, fit_denoiser, load_dit, save_dit
from noiseworks.kits.training import Run
from torch import Tensor


def fit_routed(
    model: DiT,
    routing: Routing,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> DiT:
    """Train a model with routing by the kit's recipe, and return its average with routing attached.

    Args:
        model: The new model.
        routing: The masks.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,).
        recipe: How it is trained.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.
    """
    trained = fit_denoiser(
        model,
        images,
        labels,
        recipe,
        run=run,
        around=lambda model: attach_routing(model, routing),
        progress=progress,
    )
    attach_routing(trained, routing)
    return trained


def save_routed(path: str | Path, model: DiT, routing: Routing, schedule: str) -> None:
    """Write a model with its routing; a loader that does not know dtr refuses it."""
    save_dit(path, model, schedule=schedule, methods={NAME: asdict(routing)})


def load_routed(path: str | Path) -> tuple[DiT, Routing, str]:
    """Return a model with its routing attached, the routing, and the kind of its noise schedule.

    A model without routing, as the kit's recipe saves it, comes back with β = 1.

    Raises:
        ArtifactError: When the folder holds no such model.
    """
    model, config, _ = load_dit(path, knows=(NAME,))
    routing = Routing(**config["methods"].get(NAME, {"beta": 1.0}))
    attach_routing(model, routing)
    return model, routing, config["schedule"]
