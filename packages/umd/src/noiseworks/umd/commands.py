"""What `noiseworks-umd` runs: each verb is one of these functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place, Seed, Spread, Whole, Wholes, at_least
from noiseworks.core.output import check_file
from noiseworks.umd.options import Drawing, Features, FineTuning, Mixture, Network, Pretraining, UMDConfig

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = (".png", ".webp")


def _load(data: str, size: int | None, split: str = "train") -> "tuple[Tensor, Tensor]":
    from noiseworks.kits.backbones.images import load_images

    return load_images(data, needs="umd", split=split, size=size)


def pretrain(
    *,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    network: Spread[Network] = Network(),
    mixture: Spread[Mixture] = Mixture(),
    recipe: Spread[Pretraining] = Pretraining(),
) -> dict[str, Any]:
    """Train an auto-encoder on images without labels.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        data: digits (8x8), shapes (32x32), a folder of images, or a .npz file with images x and labels y.
        size: Side in pixels to which a folder's images are resized.
        network: The auto-encoder.
        mixture: What a batch is made of.
        recipe: How it is trained.

    Returns:
        Where the model is, its steps, and the noise-free samples of a batch.
    """
    check_writable(out)
    images, _ = _load(data, size)
    config = UMDConfig(**vars(network), image_size=images.shape[-1], channels=images.shape[1])
    from noiseworks.kits.backbones.masking import keep_count
    from noiseworks.kits.training import open_run
    from noiseworks.umd.training import pretrain_model, save_model

    for ratio in mixture.values[1:]:
        keep_count(config.places, ratio)
    settings = {"data": data, "size": size, "network": network, "mixture": mixture, "fit": recipe}
    with open_run(out, settings) as run:
        trained = pretrain_model(config, images, mixture, recipe, run=run)
        save_model(out / "model", trained, schedule=recipe.schedule, mixture=mixture)
    clean = mixture.clean_rows(recipe.batch_size)
    return {"model": str(out / "model"), "steps": recipe.max_steps, "noise-free samples of a batch": clean}


def finetune(
    *,
    model: Path,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    recipe: Spread[FineTuning] = FineTuning(),
) -> dict[str, Any]:
    """Train a pre-trained auto-encoder to draw images of a class.

    Args:
        model: Folder of a model that `pretrain` wrote.
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        data: Labelled images: digits, shapes, a folder of images in a sub-folder a class, or a .npz file.
        size: Side in pixels to which a folder's images are resized.
        recipe: How it is trained.

    Returns:
        Where the model is, its steps and its classes.
    """
    check_writable(out)
    images, labels = _load(data, size)
    from noiseworks.kits.training import open_run
    from noiseworks.umd.training import finetune_model, load_model, save_model

    begun, schedule, learned = load_model(model)
    begun.patches(images[:1])
    mixture = learned.fine_tuning()
    settings = {"model": str(model), "data": data, "size": size, "mixture": mixture, "fit": recipe}
    with open_run(out, settings) as run:
        trained = finetune_model(begun, images, labels, mixture, recipe, schedule, run=run)
        save_model(out / "model", trained, schedule=schedule, mixture=mixture)
    return {"model": str(out / "model"), "steps": recipe.max_steps, "classes": trained.config.classes}


def sample(
    *, model: Path, out: Path, draw: Spread[Drawing] = Drawing(), place: Spread[Place] = Place()
) -> dict[str, Any]:
    """Draw images with a fine-tuned model, the classes in turn.

    Args:
        model: Folder of a model that `finetune` wrote; one of `pretrain` draws images of no class in particular.
        out: Picture of all images, .png or .webp.
        draw: How many, and how.
        place: Where the model runs.

    Returns:
        Where the picture is, its number of images, and whether the model has labels.
    """
    check_file(out, PICTURES)
    from noiseworks.kits.backbones.pictures import write_classes
    from noiseworks.umd.training import load_model

    loaded, schedule, _ = load_model(model)
    images, _ = _drawn(loaded.to(place.torch_device()), schedule, draw)
    write_classes(images, out)
    return {"images": draw.n, "picture": str(out), "labels": bool(loaded.config.classes)}


def _drawn(model: Any, schedule: str, settings: Drawing) -> "tuple[Tensor, Tensor]":
    import torch
    from noiseworks.core.schedules import table_schedule
    from noiseworks.umd.sampling import draw

    labels = torch.arange(settings.n) % max(1, model.null_label)
    images = draw(
        model,
        labels,
        table_schedule(schedule),
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        seeds=range(settings.seed, settings.seed + settings.n),
        by=settings.by,
    )
    return images.cpu(), labels


def probe(
    *,
    model: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    shots: Wholes = (10, 50),
    features: Spread[Features] = Features(),
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Measure what frozen features know, beside raw pixels and an untrained network.

    Args:
        model: Folder of a model.
        data: Labelled images; of a file or a folder every fourth image is held out.
        size: Side in pixels to which a folder's images are resized.
        shots: Images of a class that the ridge regression learns from, such as 10,100.
        features: Which features.
        place: Where the model runs.

    Returns:
        Accuracy by shots, and of nearest neighbours and a linear classifier on all images, of the three.
    """
    from noiseworks.kits.backbones import check_shots, few_shot, knn_probe
    from noiseworks.kits.backbones.images import load_halves
    from noiseworks.umd.features import features_of, untrained
    from noiseworks.umd.training import load_model

    (images, labels), (held, answers) = load_halves(data, needs="umd", size=size)
    loaded, schedule, _ = load_model(model)
    loaded.patches(images[:1])
    check_shots(labels, shots)
    device, found = place.torch_device(), {}
    for name, net in (("model", loaded), ("untrained", untrained(loaded)), ("pixels", None)):
        known, asked = (
            part.flatten(1) if net is None else features_of(net.to(device), part, features, schedule)
            for part in (images, held)
        )
        train, test = (known, labels), (asked, answers)
        scores = {f"{count} shots": few_shot(train, test, count) for count in shots}
        found[name] = scores | {"nearest neighbours": knn_probe(train, test)}
    return found


def reconstruct(
    *,
    model: Path,
    out: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    mask: float = 0.75,
    n: Annotated[Whole, at_least(1)] = 8,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Show images, their masks and what the model fills in.

    Args:
        model: Folder of a model.
        out: Picture, .png or .webp.
        data: Images; of digits and shapes, ones that were not trained on.
        size: Side in pixels to which a folder's images are resized.
        mask: Share of the patches that is removed.
        n: The first n images.
        seed: Of the masks.

    Returns:
        Where the picture is, and the mean squared error of the removed patches, in units of the image's range of 2.
    """
    check_file(out, PICTURES)
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    images, _ = _load(data, size, "test")
    import torch
    from noiseworks.kits.backbones.masking import keep_count, masked_mean, random_masks
    from noiseworks.kits.backbones.pictures import masked_pictures
    from noiseworks.umd.training import load_model

    loaded, _, _ = load_model(model)
    images, places = images[:n], loaded.config.places
    patches, keep = loaded.patches(images), keep_count(places, mask)
    if keep == places:
        raise InputError(f"mask must be large enough to remove one of {places} patches, got {mask}")
    masks = random_masks(len(images), places, keep, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        filled = loaded.reconstruct(images, masks)
    masked_pictures(images, filled, masks.removed, loaded.config.patch, out)
    error = masked_mean((loaded.patches(filled) - patches).square(), masks.removed)
    return {"picture": str(out), "error": float(error)}


def evaluate(
    *,
    model: Path,
    data: str = "shapes",
    size: Annotated[Whole | None, at_least(1)] = None,
    draw: Spread[Drawing] = Drawing(n=240),
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Measure samples in the features of a small classifier that is trained on the data first.

    Args:
        model: Folder of a model that `finetune` wrote.
        data: The labelled images that it learned from.
        size: Side in pixels to which a folder's images are resized.
        draw: How many samples (more than 64), and how.
        place: Where the model runs.

    Returns:
        Fréchet distance, share of samples that the classifier puts into their class, and the same share of the images.
    """
    if draw.n <= 64:
        raise InputError(f"n must be above 64, the classifier's features, got {draw.n}")
    images, labels = _load(data, size)
    from noiseworks.kits.backbones import fit_features, frechet_distance
    from noiseworks.umd.training import load_model

    loaded, schedule, _ = load_model(model)
    loaded.patches(images[:1])
    if loaded.config.classes != int(labels.max()) + 1:
        raise InputError(
            f"the model has {loaded.config.classes} classes, {data} has {int(labels.max()) + 1}; fine-tune it on {data}"
        )
    net = fit_features(images, labels)
    drawn, wanted = _drawn(loaded.to(place.torch_device()), schedule, draw)
    return {
        "frechet": frechet_distance(net.moments(drawn), net.moments(images)),
        "right": float((net(drawn).argmax(1) == wanted).float().mean()),
        "right of images": float((net(images).argmax(1) == labels).float().mean()),
    }
