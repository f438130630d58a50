"""What `noiseworks-dtr` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place, Spread, Whole, at_least
from noiseworks.core.output import check_file
from noiseworks.dtr.options import Routing
from noiseworks.kits.backbones.options import Architecture, DiTConfig, Draw, Recipe

PICTURES, TIMESTEPS = (".svg", ".png", ".webp"), 1000


def train(
    *,
    out: Path,
    data: str = "digits",
    architecture: Spread[Architecture] = Architecture(),
    routing: Spread[Routing] = Routing(),
    recipe: Spread[Recipe] = Recipe(),
) -> dict[str, Any]:
    """Train a routed DiT on labelled images.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        data: digits (8x8 handwritten digits), or a .npz file with images x and labels y.
        architecture: The transformer.
        routing: The masks; beta 1 trains the plain host.
        recipe: How it is trained.

    Returns:
        Where the model is, and its steps.
    """
    check_writable(out)
    routing.active(architecture.width)
    if routing.num_tasks != TIMESTEPS:
        raise InputError(f"num_tasks must be {TIMESTEPS}, the recipe's timesteps, got {routing.num_tasks}")
    from noiseworks.kits.backbones.images import load_images

    images, labels = load_images(data, needs="dtr")
    config = DiTConfig(
        **vars(architecture),
        image_size=images.shape[-1],
        channels=images.shape[1],
        classes=int(labels.max()) + 1,
    )
    import torch
    from noiseworks.dtr.training import fit_routed, save_routed
    from noiseworks.kits.backbones import DiT
    from noiseworks.kits.training import open_run

    settings = {"data": data, "architecture": architecture, "routing": routing, "fit": recipe}
    with open_run(out, settings) as run, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        trained = fit_routed(DiT(config), routing, images, labels, recipe, run=run)
        save_routed(out / "model", trained, routing, recipe.schedule)
    return {"model": str(out / "model"), "steps": recipe.max_steps}


def sample(
    *, model: Path, out: Path, draw: Spread[Draw] = Draw(), place: Spread[Place] = Place()
) -> dict[str, Any]:
    """Draw images from a routed DiT, the classes in turn.

    Args:
        model: Folder of a model that `train` wrote.
        out: Picture of all images, .png or .webp.
        draw: How many, and how.
        place: Where the model runs.

    Returns:
        Where the picture is, and its number of images.
    """
    check_file(out, (".png", ".webp"))
    from noiseworks.dtr.training import load_routed
    from noiseworks.kits.backbones.pictures import draw_classes

    loaded, _, schedule = load_routed(model)
    draw_classes(loaded.to(place.torch_device()), schedule, draw, out)
    return {"images": draw.n, "picture": str(out)}


def evaluate(*, model: Path, data: str = "digits", place: Spread[Place] = Place()) -> dict[str, Any]:
    """Measure the held-out denoising loss, from the least noisy tenth of the timesteps to the noisiest.

    Args:
        model: Folder of a model that `train` wrote.
        data: digits, or a .npz file with images x and labels y that the model did not see.
        place: Where the model runs.

    Returns:
        The mean squared error of the noise, over all timesteps and in each tenth.
    """
    from noiseworks.core.schedules import table_schedule
    from noiseworks.dtr.training import load_routed
    from noiseworks.kits.backbones import held_out_loss, load_images

    images, labels = load_images(data, needs="dtr", split="test")
    loaded, routing, schedule = load_routed(model)
    on_device = loaded.to(place.torch_device())
    losses = held_out_loss(on_device, images, labels, table_schedule(schedule))
    return {"loss": float(losses.mean()), "by tenth": losses.mean(0).tolist(), "beta": routing.beta}


def inspect(
    *,
    channels: Annotated[Whole, at_least(1)] = 384,
    routing: Spread[Routing] = Routing(),
    picture: Path | None = None,
) -> dict[str, Any]:
    """Show the masks of a width, and which timesteps share channels.

    Args:
        channels: Width of the model.
        routing: The masks.
        picture: File for the masks and the shared channels, .svg, .png or .webp.

    Returns:
        Channels that are on, channels that every timestep uses, and the first channel at eleven timesteps.
    """
    if channels < 1:
        raise InputError(f"channels must be at least 1, got {channels}")
    if picture is not None:
        check_file(picture, PICTURES)
    import torch
    from noiseworks.dtr.routing import affinity, route_mask, route_starts

    n, every = routing.active(channels), torch.arange(routing.num_tasks)
    masks = route_mask(routing, channels, every)
    shown = torch.linspace(0, routing.num_tasks - 1, 11).round().long()
    if picture is not None:
        from noiseworks.kits.backbones.pictures import two_maps

        rows = torch.linspace(0, routing.num_tasks - 1, 64).round().long()
        shared = affinity(routing, channels, rows) / n
        two_maps(
            picture, masks[rows].double(), "channels of each timestep", shared.double(), "channels shared"
        )
    found = {"on": n, "always on": int(masks.all(0).sum()), "timesteps": shown.tolist()}
    if routing.kind == "window":
        found["first channel"] = route_starts(routing, channels)[shown].tolist()
    return found
