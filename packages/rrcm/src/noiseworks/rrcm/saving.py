"""Encoders and classifiers as artifacts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import save_artifact
from noiseworks.kits.backbones import load_network
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
    encoder, (network, shape) = load_network(path, ENCODER, _encoder_of)
    return encoder, network, shape


def _encoder_of(config: dict[str, Any]) -> tuple[RrcmEncoder, tuple[Network, tuple[int, int]]]:
    network, shape = Network(**config["network"]), (config["channels"], config["image_size"])
    return RrcmEncoder(network, channels=shape[0], image_size=shape[1]), (network, shape)


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

    def make(config: dict[str, Any]) -> tuple[NoisyClassifier, tuple[Network, tuple[int, int]]]:
        encoder, about = _encoder_of(config)
        model = NoisyClassifier(encoder, config["classes"], sigma=config["sigma"], normed=config["normed"])
        return model, about

    model, (network, shape) = load_network(path, CLASSIFIER, make)
    return model, network, shape
