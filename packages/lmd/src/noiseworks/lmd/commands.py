"""What `noiseworks-lmd` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place, Spread, Whole, Wholes, at_least
from noiseworks.core.output import check_file
from noiseworks.lmd.options import FineTuning, Hiding, Latents, Masking, Network, Pretraining

PICTURES = (".png", ".webp")
PLOTS = (".svg", ".png", ".webp")


def pretrain(
    *,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    cache: Path | None = None,
    network: Spread[Network] = Network(),
    masking: Spread[Masking] = Masking(),
    latents: Spread[Latents] = Latents(),
    recipe: Spread[Pretraining] = Pretraining(),
) -> dict[str, Any]:
    """Train an auto-encoder of masked latents, or of pixels.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        data: shapes (32x32), digits (8x8), a folder of images, or a .npz file with images x and labels y.
        size: Side in pixels to which a folder's images are resized.
        cache: Folder in which latents are kept for further runs on the same images; by default the run's `latents`.
        network: The auto-encoder.
        masking: What is removed, by step.
        latents: What is masked.
        recipe: How it is trained.

    Returns:
        Where the model is, its steps, and the mean share of removed patches.
    """
    check_writable(out)
    if latents.views > 1 and recipe.crop == 1 and not recipe.flip:
        raise InputError(
            f"views {latents.views} would all be the same; give crop or flip, or leave views out"
        )
    from noiseworks.kits.backbones.images import load_images
    from noiseworks.kits.training import open_run
    from noiseworks.lmd.latents import Space
    from noiseworks.lmd.training import (
        Trained,
        check_masks,
        config_of,
        inputs_of,
        pretrain_model,
        save_model,
    )

    images, _ = load_images(data, needs="lmd", size=size)
    space = Space.load(latents)
    config = config_of(network, space, images)
    check_masks(config, masking)
    _check_batch(recipe.batch_size, len(images) * latents.views)
    settings = {"data": data, "size": size, "network": network, "masking": masking, "latents": latents}
    with open_run(out, settings | {"fit": recipe}) as run:
        inputs, recipe = inputs_of(space, images, latents, recipe, cache or out / "latents")
        model = pretrain_model(config, inputs, masking, recipe, run=run)
        trained = Trained(latents.vae, latents.scale_latents, space.fingerprint, recipe.normalise)
        save_model(out / "model", model, trained)
    steps = recipe.max_steps
    return {"model": str(out / "model"), "steps": steps, "mean ratio": masking.mean_ratio(steps)}


def _check_batch(batch_size: int, rows: int) -> None:
    if batch_size > rows:
        raise InputError(f"batch_size must be at most {rows}, the images there are, got {batch_size}")


def finetune(
    *,
    model: Path,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    vae: str | None = None,
    recipe: Spread[FineTuning] = FineTuning(),
) -> dict[str, Any]:
    """Train a classifier on a pre-trained encoder.

    Args:
        model: Folder of a model that `pretrain` wrote.
        out: Folder of the run; the classifier is its `classifier`. The same command goes on with a stopped run.
        data: Labelled images: shapes, digits, a folder of images in a sub-folder a class, or a .npz file; of a file or
            a folder every fourth image is held out.
        size: Side in pixels to which a folder's images are resized.
        vae: Where the model's autoencoder is now, if it moved.
        recipe: How it is trained.

    Returns:
        Where the classifier is, its steps, and its accuracy on held-out images.
    """
    check_writable(out)
    import torch
    from noiseworks.kits.backbones.images import load_halves
    from noiseworks.kits.training import open_run
    from noiseworks.lmd.training import finetune_model, fitting_encoder, load_model, save_classifier

    loaded, trained = load_model(model)
    space = trained.space(vae)
    (images, labels), (held, answers) = load_halves(data, needs="lmd", size=size)
    encoder = fitting_encoder(loaded.encoder, space, images)
    _check_batch(recipe.batch_size, len(images))
    settings = {"model": str(model), "data": data, "size": size, "fit": recipe}
    with open_run(out, settings) as run:
        made = finetune_model(encoder, space, images, labels, recipe, run=run)
        save_classifier(out / "classifier", made, trained)
    with torch.inference_mode():
        found = torch.cat([made(part).argmax(1) for part in space.encode(held).split(512)])
    accuracy = float((found == answers).float().mean())
    return {"model": str(out / "classifier"), "steps": recipe.max_steps, "accuracy": accuracy}


def probe(
    *,
    model: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    vae: str | None = None,
    shots: Wholes = (10, 50),
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Measure what frozen features know, beside raw inputs and an untrained network.

    Args:
        model: Folder of a model.
        data: Labelled images; of a file or a folder every fourth image is held out.
        size: Side in pixels to which a folder's images are resized.
        vae: Where the model's autoencoder is now, if it moved.
        shots: Images of a class that the ridge regression learns from, such as 10,100.
        place: Where the model runs.

    Returns:
        Accuracy by shots, and of nearest neighbours, of the three.
    """
    from noiseworks.kits.backbones import check_shots, few_shot, knn_probe
    from noiseworks.kits.backbones.images import load_halves
    from noiseworks.lmd.features import features_of, untrained
    from noiseworks.lmd.training import fitting_encoder, load_model

    loaded, trained = load_model(model)
    device, space = place.torch_device(), trained.space(vae)
    (images, labels), (held, answers) = load_halves(data, needs="lmd", size=size)
    check_shots(labels, shots)
    encoder, found = fitting_encoder(loaded.encoder, space, images), {}
    known, asked = (space.to(device).encode(part.to(device)).cpu() for part in (images, held))
    for name, net in (("model", encoder), ("untrained", untrained(encoder.config).encoder), ("raw", None)):
        train, test = (
            part.flatten(1) if net is None else features_of(net.to(device), part) for part in (known, asked)
        )
        scores = {f"{n} shots": few_shot((train, labels), (test, answers), n) for n in shots}
        found[name] = scores | {"nearest neighbours": knn_probe((train, labels), (test, answers))}
    return found


def reconstruct(
    *,
    model: Path,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    vae: str | None = None,
    hiding: Spread[Hiding] = Hiding(),
) -> dict[str, Any]:
    """Show images, their masks and what the model fills in.

    Args:
        model: Folder of a model that `pretrain` wrote.
        out: Picture, .png or .webp.
        data: Images; of shapes and digits, ones that were not trained on.
        size: Side in pixels to which a folder's images are resized.
        vae: Where the model's autoencoder is now, if it moved.
        hiding: What is removed of which images.

    Returns:
        Where the picture is, and the mean PSNR in dB of the filled-in images and of the autoencoder alone.
    """
    check_file(out, PICTURES)
    import torch
    from noiseworks.kits.backbones.images import load_images
    from noiseworks.kits.backbones.masking import keep_count, random_masks
    from noiseworks.kits.backbones.pictures import masked_pictures
    from noiseworks.lmd.features import psnr
    from noiseworks.lmd.training import load_model

    loaded, trained = load_model(model)
    space = trained.space(vae)
    images = load_images(data, needs="lmd", split="test", size=size)[0][: hiding.n]
    latents, places = space.encode(images), loaded.config.places
    keep = keep_count(places, hiding.mask)
    loaded.patches(latents)
    generator = torch.Generator().manual_seed(hiding.seed)
    masks = random_masks(len(images), places, keep, kind=hiding.kind, generator=generator)
    with torch.inference_mode():
        filled = loaded.reconstruct(latents, masks, normalised=trained.normalise, rounds=hiding.rounds)
        shown, whole = space.decode(filled), space.decode(latents)
    masked_pictures(images, shown, masks.removed, loaded.config.patch * space.factor, out)
    measured = {"psnr": float(psnr(images, shown).mean())}
    if space.vae is not None:
        measured["psnr of the autoencoder"] = float(psnr(images, whole).mean())
    return {"picture": str(out), "removed": places - keep, **measured}


def schedule(
    *,
    steps: Annotated[Whole, at_least(1)] = 900,
    places: Annotated[Whole, at_least(1)] = 49,
    plot: Path | None = None,
    masking: Spread[Masking] = Masking(),
) -> dict[str, Any]:
    """Show the mask ratio and the kept patches by step.

    Args:
        steps: Optimiser steps of a run.
        places: Patches of an image.
        plot: File for the curves of all schedules, .svg, .png or .webp.
        masking: The schedule that is listed.

    Returns:
        Ratio and kept patches at eleven steps, and the means over a run of the ratio and of the encoder's tokens.
    """
    if plot is not None:
        check_file(plot, PLOTS)
    for name, value in (("steps", steps), ("places", places)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    from dataclasses import replace

    from noiseworks.kits.backbones.masking import keep_count

    keep_count(places, masking.most)
    shown = {str(steps * part // 10): masking.ratio(steps * part // 10, steps) for part in range(11)}
    kept = {step: keep_count(places, ratio) for step, ratio in shown.items()}
    if plot is not None:
        from noiseworks.kits.pictures import line_plot

        every = list(range(0, steps + 1, max(1, steps // 100)))
        kinds = ("cosine", "piecewise", "linear", "fixed")
        curves = {
            name: (every, [replace(masking, schedule=name).ratio(step, steps) for step in every])
            for name in kinds
        }
        line_plot(plot, curves, ("step", "mask ratio"))
    tokens = sum(keep_count(places, masking.ratio(step, steps)) + 1 for step in range(steps)) / steps
    return {
        "ratio": shown,
        "kept": kept,
        "mean ratio": masking.mean_ratio(steps),
        "mean tokens of the encoder": tokens,
    }
