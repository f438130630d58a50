"""What `noiseworks-rrcm` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place, Spread, Whole, at_least
from noiseworks.core.output import check_file
from noiseworks.rrcm.options import Finetuning, Network, Pretraining, Smoothing

PICTURES = (".svg", ".png", ".webp")
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


def pretrain_encoder(
    *,
    out: Path,
    data: str = "digits",
    network: Spread[Network] = Network(),
    pretraining: Spread[Pretraining] = Pretraining(),
) -> dict[str, Any]:
    """Pre-train an encoder on images; labels are not read.

    Args:
        out: Folder of the run; the encoder is its `encoder`. The same command goes on with a run that was stopped.
        data: digits (8x8 handwritten digits), or a .npz file with images x and labels y.
        network: Sizes.
        pretraining: How it is trained.

    Returns:
        Where the encoder is, and its steps.
    """
    check_writable(out)
    from noiseworks.kits.backbones.images import load_images
    from noiseworks.rrcm.inputs import check_sizes

    images, _ = load_images(data, needs="rrcm")
    check_sizes(len(images), pretraining.batch_size, images.shape[-1], network.patch)
    from noiseworks.kits.training import open_run
    from noiseworks.rrcm.pretraining import pretrain
    from noiseworks.rrcm.saving import save_encoder

    with open_run(out, {"data": data, "network": network, "fit": pretraining}) as run:
        encoder = pretrain(images, network, pretraining, run=run)
        save_encoder(out / "encoder", encoder, network, (images.shape[1], images.shape[-1]))
    return {"model": str(out / "encoder"), "steps": pretraining.max_steps}


def finetune_classifier(
    *,
    model: Path,
    out: Path,
    data: str = "digits",
    sigma: Annotated[float, at_least(0)] = 0.5,
    finetuning: Spread[Finetuning] = Finetuning(),
) -> dict[str, Any]:
    """Train a classifier on a pre-trained encoder, or go on with a classifier.

    Args:
        model: Folder of an encoder, or of a classifier whose encoder and head are the start.
        out: Folder of the run; the classifier is its `classifier`. The same command goes on with a stopped run.
        data: digits, or a .npz file with images x and labels y.
        sigma: Noise beside images in [0, 1] that it is to stand; 0 for the tasks finetune and linear.
        finetuning: Task and lengths.

    Returns:
        Where the classifier is, and its steps.
    """
    check_writable(out)
    from noiseworks.rrcm.finetuning import check_task, finetune
    from noiseworks.rrcm.inputs import check_sizes, kind_of, shaped_images
    from noiseworks.rrcm.saving import CLASSIFIER, load_classifier, load_encoder, save_classifier

    headed = kind_of(model) == CLASSIFIER
    check_task(finetuning, sigma, headed)
    loaded, network, shape = load_classifier(model) if headed else load_encoder(model)
    images, labels = shaped_images(data, shape, "train")
    check_sizes(len(images), finetuning.batch_size)
    classes = int(labels.max()) + 1
    if headed and loaded.head.out_features != classes:
        raise InputError(f"{model} has {loaded.head.out_features} classes, {data} has {classes}")
    from noiseworks.kits.training import open_run

    settings = {"data": data, "model": str(model), "sigma": sigma, "fit": finetuning}
    with open_run(out, settings) as run:
        encoder, head = (loaded.encoder, loaded) if headed else (loaded, None)
        made = finetune(encoder, images, labels, sigma, finetuning, head=head, run=run)
        save_classifier(out / "classifier", made, network, shape)
    return {"model": str(out / "classifier"), "steps": finetuning.max_steps}


def certify(
    *,
    model: Path,
    out: Path,
    data: str = "digits",
    sigma: Annotated[float | None, at_least(0)] = None,
    images: Annotated[Whole | None, at_least(1)] = 500,
    stop_if_wrong: bool = False,
    smoothing: Spread[Smoothing] = Smoothing(),
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Certify images with a classifier; a certification that was stopped goes on.

    Args:
        model: Folder of a classifier.
        out: Folder of the table, `table.tsv`, with its settings.
        data: digits (those that training does not see), or a .npz file with images x and labels y.
        sigma: Noise beside images in [0, 1], by default what the classifier was trained for.
        images: How many, at even distances.
        stop_if_wrong: Whether an image whose chosen class is wrong is drawn no further: faster, and the accuracies
            stay as they are.
        smoothing: Draws, confidence and seed.
        place: Where the model runs.

    Returns:
        Certified accuracy at five radii and the average certified radius.
    """
    check_writable(out)
    from noiseworks.core.output import progress_bar
    from noiseworks.rrcm.encoder import NoisyClassifier
    from noiseworks.rrcm.inputs import shaped_images
    from noiseworks.rrcm.saving import load_classifier
    from noiseworks.rrcm.smoothing import SmoothedClassifier
    from noiseworks.rrcm.tables import certify_images, evenly, open_table

    loaded, _, shape = load_classifier(model)
    sigma = loaded.sigma if sigma is None else sigma
    if sigma == 0:
        raise InputError(f"{model} is a classifier of clean images: give the noise as sigma")
    base = NoisyClassifier(loaded.encoder, loaded.head.out_features, sigma=sigma, normed=loaded.normed)
    base.head = loaded.head
    device = place.torch_device()
    smoothed = SmoothedClassifier(base.to(device).eval(), base.head.out_features, sigma, smoothing)
    pictures, labels = shaped_images(data, shape, "test")
    settings = {"model": str(model), "data": data, "sigma": sigma, "images": images}
    settings |= {
        "stop_if_wrong": stop_if_wrong,
        **{k: v for k, v in asdict(smoothing).items() if k != "rows"},
    }
    file = open_table(out, settings)
    with progress_bar("certifying") as show:
        table = certify_images(
            smoothed, pictures.to(device), labels, file,
            chosen=evenly(len(pictures), images), stop_if_wrong=stop_if_wrong, progress=show,
        )  # fmt: skip
    shares = {f"accuracy at {radius:g}": table.accuracy(radius) for radius in RADII}
    return {"table": str(file), "sigma": sigma, "average radius": table.average_radius(), **shares}


def report(
    *,
    tables: tuple[Path, ...],
    radii: tuple[float, ...] = RADII,
    alpha: Annotated[float, at_least(0)] = 0.001,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Compare tables of certificates, and take the best of them at each radius.

    Args:
        tables: Files with the columns idx, label, predict, radius, correct and time.
        radii: At which the accuracy is shown.
        alpha: Chance that a certificate is wrong, for the accuracy that holds with a confidence of 99.9 %.
        picture: File for the curves, .svg, .png or .webp.

    Returns:
        Accuracies and average radius of each table, and the best accuracies.
    """
    if any(not 0 <= radius < float("inf") for radius in radii):
        raise InputError(f"radii must be numbers of at least 0, got {list(radii)}")
    if picture is not None:
        check_file(picture, PICTURES)
    from noiseworks.rrcm.tables import plot, read_table, with_confidence

    read = {str(path): read_table(path) for path in tables}
    if picture is not None:
        plot(read, radii, picture)
    found: dict[str, Any] = {}
    for name, table in read.items():
        accuracy = {f"{radius:g}": table.accuracy(radius) for radius in radii}
        sure = {
            radius: max(with_confidence(share, len(table.radii), alpha), 0.0)
            for radius, share in accuracy.items()
        }
        found[name] = {
            "average radius": table.average_radius(),
            "accuracy": accuracy,
            "with confidence": sure,
        }
    best = {f"{radius:g}": max(table.accuracy(radius) for table in read.values()) for radius in radii}
    return {"tables": found, "best": best}
