"""Frozen features of images, for probes, with the two controls that a probe needs beside it."""

import torch
from noiseworks.core.schedules import add_noise, table_schedule
from noiseworks.umd.model import UMD
from noiseworks.umd.options import Features
from torch import Tensor

CONTROL = 0.1  # deviation of the modulation weights that open an untrained network's gates
NOISE_SEED = 0  # of the noise that images get before they are read at a time above 0


@torch.inference_mode()
def features_of(
    model: UMD,
    images: Tensor,
    features: Features = Features(),
    schedule: str = "cosine",
    batch_size: int = 512,
) -> Tensor:
    """Return one row of features an image, (n, D), on the CPU.

    Args:
        model: The network; its decoder is not run.
        images: Clean ones, (n, C, H, W) in [-1, 1]. At a time above 0 each is noised first, as in training, by noise
            that is the same in every call.
        features: Which ones.
        schedule: Kind of the noise schedule that the model was trained with.
        batch_size: Images at once.
    """
    if features.time:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        images = add_noise(images, noise.to(images), table_schedule(schedule).level(features.time - 1))
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
