"""Frozen features of latents, for probes, and the untrained control that a probe needs beside it."""

import torch
from noiseworks.lmd.model import LMD, Encoder
from noiseworks.lmd.options import LMDConfig
from torch import Tensor


@torch.inference_mode()
def features_of(encoder: Encoder, inputs: Tensor, batch_size: int = 512) -> Tensor:
    """Return the mean of the patches' normed tokens, without the class token, (n, D), on the CPU.

    Args:
        encoder: The encoder; it sees all patches.
        inputs: Latents or images, (n, C, H, W).
        batch_size: Rows at once.
    """
    device = encoder.cls_token.device
    rows = [
        encoder.forward_features(part.to(device))[:, 1:].mean(1).cpu() for part in inputs.split(batch_size)
    ]
    return torch.cat(rows).clone()


def untrained(config: LMDConfig, seed: int = 0) -> LMD:
    """Return a new auto-encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LMD(config).eval()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image (B,), in dB, of images in [-1, 1]."""
    return 10 * torch.log10(4 / (images - others).square().flatten(1).mean(1))
