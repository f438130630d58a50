"""Frozen features of images, for probes, with the two controls that a probe needs beside it."""

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import ridge_probe
from noiseworks.umd.model import UMD
from noiseworks.umd.options import Features
from torch import Tensor

PENALTY = 1024.0  # of the few-shot protocol
CONTROL = 0.1  # deviation of the modulation weights that open an untrained network's gates


@torch.inference_mode()
def features_of(model: UMD, images: Tensor, features: Features = Features(), batch_size: int = 512) -> Tensor:
    """Return one row of features an image, (n, D), on the CPU.

    Args:
        model: The network; its decoder is not run.
        images: (n, C, H, W) in [-1, 1].
        features: Which ones.
        batch_size: Images at once.
    """
    device, rows = model.cls_tokens.device, []
    for part in images.split(batch_size):
        representation, tokens = model.forward_features(part.to(device), features.time)
        rows.append((representation if features.tokens == "cls" else tokens.mean(1)).cpu())
    return torch.cat(rows).clone()


def untrained(model: UMD, seed: int = 0) -> UMD:
    """Return a new network of a model's sizes whose gates are open: with the first weights its features are all 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = UMD(model.config)
        if made.encoder.modulation is not None:
            torch.nn.init.normal_(made.encoder.modulation.weight, std=CONTROL)
            torch.nn.init.normal_(made.encoder.modulation.bias, std=CONTROL)
        torch.nn.init.normal_(made.cls_tokens, std=0.02)
    return made.eval()


def few_shot(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], shots: int, seeds: int = 3) -> float:
    """Return the accuracy of the few-shot protocol, the mean over draws of the shots.

    Ridge regression with penalty 1024 on standardised features to targets of ±1.

    Args:
        train: Features (n, d) and labels (n,).
        test: The same.
        shots: Images of a class.
        seeds: Draws.

    Raises:
        InputError: When a class has fewer images.
    """
    found = [
        ridge_probe(train, test, shots=shots, penalties=(PENALTY,), seed=seed)[PENALTY]
        for seed in range(seeds)
    ]
    return sum(found) / len(found)


def check_shots(labels: Tensor, shots: tuple[int, ...]) -> None:
    """Refuse more shots than the smallest class has images.

    Raises:
        InputError: Naming both.
    """
    smallest = int(labels.bincount().min())
    if max(shots) > smallest:
        raise InputError(
            f"shots must be at most {smallest}, the images of the smallest class, got {max(shots)}"
        )
