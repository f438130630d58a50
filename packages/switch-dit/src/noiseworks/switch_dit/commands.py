"""What `noiseworks-switch-dit` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_folder, check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place, Spread
from noiseworks.core.output import check_file
from noiseworks.kits.backbones.options import Architecture, DiTConfig, Draw, Recipe
from noiseworks.switch_dit.options import Switch

PICTURES, TIMESTEPS = (".svg", ".png", ".webp"), 1000
KIND = "backbones/dit"


def convert(*, model: Path, out: Path, switch: Spread[Switch] = Switch()) -> dict[str, Any]:
    """Add fresh experts to a plain DiT; its outputs stay the same, bit for bit.

    Args:
        model: Folder of a plain DiT of the kit, or of diffusers' DiTTransformer2DModel.
        out: Folder for the model.
        switch: The experts.

    Returns:
        Where the model is, and by how many parameters it grew.
    """
    check_folder(out, KIND, sources=(model,))
    _check_tasks(switch)
    if not (model / "config.json").is_file():
        raise InputError(f"no model in {str(model)!r}: name the folder of a DiT")
    from noiseworks.core.artifacts import read_json
    from noiseworks.kits.backbones import from_diffusers, load_dit
    from noiseworks.switch_dit.model import SwitchDiT

    schedule = "linear"  # that of the published diffusers checkpoints
    if "_class_name" in read_json(model / "config.json"):
        from diffusers import DiTTransformer2DModel

        dit = from_diffusers(DiTTransformer2DModel.from_pretrained(model))
    else:
        dit, config, _ = load_dit(model)
        schedule = config["schedule"]
    made = SwitchDiT.from_dit(dit, switch)
    made.save_pretrained(out, schedule)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (dit, made))
    return {"model": str(out), "parameters": after, "added": after - before}


def _check_tasks(switch: Switch) -> None:
    if switch.num_tasks != TIMESTEPS:
        raise InputError(f"num_tasks must be {TIMESTEPS}, the recipe's timesteps, got {switch.num_tasks}")


def train(
    *,
    out: Path,
    data: str = "digits",
    model: Path | None = None,
    architecture: Spread[Architecture] = Architecture(),
    switch: Spread[Switch] = Switch(),
    recipe: Spread[Recipe] = Recipe(),
) -> dict[str, Any]:
    """Train a DiT with experts on labelled images.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        data: digits (8x8 handwritten digits), or a .npz file with images x and labels y.
        model: Folder of a model that `convert` wrote, to begin with instead of a new one; its sizes and its experts
            then count.
        architecture: The transformer.
        switch: The experts.
        recipe: How it is trained.

    Returns:
        Where the model is, its steps, and how far its gates agree with the prior.
    """
    check_writable(out)
    _check_tasks(switch)
    from noiseworks.kits.backbones.images import load_images

    images, labels = load_images(data, needs="switch-dit")
    if model is None:
        shape = {"image_size": images.shape[-1], "channels": images.shape[1]}
        config = DiTConfig(**vars(architecture), **shape, classes=int(labels.max()) + 1)
    import torch
    from noiseworks.kits.training import open_run
    from noiseworks.switch_dit.model import SwitchDiT
    from noiseworks.switch_dit.training import fit_switch

    begun = None if model is None else SwitchDiT.from_pretrained(model)[0].train()
    settings = {
        "data": data,
        "model": str(model),
        "architecture": architecture,
        "switch": switch,
        "fit": recipe,
    }
    with open_run(out, settings) as run, torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        new = SwitchDiT(config, switch) if begun is None else begun
        trained = fit_switch(new, images, labels, recipe, run=run)
        trained.save_pretrained(out / "model", recipe.schedule)
    return {"model": str(out / "model"), "steps": recipe.max_steps, "agreement": trained.agreement()}


def sample(
    *, model: Path, out: Path, draw: Spread[Draw] = Draw(), place: Spread[Place] = Place()
) -> dict[str, Any]:
    """Draw images, the classes in turn.

    Args:
        model: Folder of a model that `train` or `convert` wrote.
        out: Picture of all images, .png or .webp.
        draw: How many, and how.
        place: Where the model runs.

    Returns:
        Where the picture is, and its number of images.
    """
    check_file(out, (".png", ".webp"))
    from noiseworks.kits.backbones.pictures import draw_classes
    from noiseworks.switch_dit.model import SwitchDiT

    loaded, schedule = SwitchDiT.from_pretrained(model)
    draw_classes(loaded.to(place.torch_device()), schedule, draw, out)
    return {"images": draw.n, "picture": str(out)}


def inspect(*, model: Path, picture: Path | None = None) -> dict[str, Any]:
    """Show which timesteps use which experts.

    Args:
        model: Folder of a model that `train` or `convert` wrote.
        picture: File for the table and for how many experts timesteps share, .svg, .png or .webp.

    Returns:
        How far the gates agree with the prior, and the largest share of timesteps that one expert of a block serves.
    """
    if picture is not None:
        check_file(picture, PICTURES)
    from noiseworks.switch_dit.model import SwitchDiT

    table = (loaded := SwitchDiT.from_pretrained(model)[0]).routing_table()
    if picture is not None:
        import torch
        from noiseworks.kits.backbones.pictures import two_maps

        rows = table[torch.linspace(0, len(table) - 1, 64).round().long()].flatten(1).double()
        shared = rows @ rows.T / rows.sum(1).max()
        two_maps(picture, rows, "experts of each timestep", shared, "experts shared")
    busiest = table.double().mean(0).amax(1)
    return {"agreement": loaded.agreement(), "busiest expert of each block": busiest.tolist()}
