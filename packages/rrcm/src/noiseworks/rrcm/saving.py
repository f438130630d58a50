"""Encoders and classifiers as artifacts."""

from dataclasses import asdict
from pathlib import Path

from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.rrcm.encoder import NoisyClassifier, RrcmEncoder
from noiseworks.rrcm.options import Network

ENCODER, CLASSIFIER = "rrcm/encoder", "rrcm/classifier"


def save_encoder(path: str | Path, encoder: RrcmEncoder, network: Network, shape: tuple[int, int]) -> None:
    """Write an encoder for images of a shape (channels, side)."""
    config = {"network": asdict(network), "channels": shape[0], "image_size": shape[1]}
    save_artifact(path, ENCODER, config, encoder.state_dict())


def load_encoder(path: str | Path) -> tuple[RrcmEncoder, Network, tuple[int, int]]:
    """Return an encoder, its sizes, and the shape (channels, side) of its images.

    Raises:
        ArtifactError: When the folder holds none.
    """
    config, tensors = load_artifact(path, ENCODER)
    try:
        network = Network(**config["network"])
        shape = (config["channels"], config["image_size"])
        encoder = RrcmEncoder(network, channels=shape[0], image_size=shape[1])
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, InputError) as error:
        raise ArtifactError(f"{path} is no encoder that this release reads: {error}") from error
    return encoder.eval(), network, shape


def save_classifier(
    path: str | Path, model: NoisyClassifier, network: Network, shape: tuple[int, int]
) -> None:
    """Write a classifier with what its encoder is made of."""
    config = {
        "network": asdict(network),
        "channels": shape[0],
        "image_size": shape[1],
        "classes": model.head.out_features,
        "sigma": model.sigma,
        "normed": model.normed,
    }
    save_artifact(path, CLASSIFIER, config, model.state_dict())


def load_classifier(path: str | Path) -> tuple[NoisyClassifier, Network, tuple[int, int]]:
    """Return a classifier in evaluation mode, its sizes, and the shape (channels, side) of its images.

    Raises:
        ArtifactError: When the folder holds none.
    """
    config, tensors = load_artifact(path, CLASSIFIER)
    try:
        network = Network(**config["network"])
        shape = (config["channels"], config["image_size"])
        encoder = RrcmEncoder(network, channels=shape[0], image_size=shape[1])
        model = NoisyClassifier(encoder, config["classes"], sigma=config["sigma"], normed=config["normed"])
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, InputError) as error:
        raise ArtifactError(f"{path} is no classifier that this release reads: {error}") from error
    return model.eval().requires_grad_(False), network, shape
