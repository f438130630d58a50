"""How close images are to reference images: PSNR and SSIM."""

import math

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from torch import Tensor


def peak_signal_to_noise(images: Tensor, others: Tensor) -> Tensor:
    """Return the PSNR [B] in dB of images [B, C, H, W] in [-1, 1] (peak-to-peak 2); equal ones have 126."""
    error = (images - others.clamp(-1, 1)).double().square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / error.clamp(min=1e-12)) if len(error) else error * math.nan


def structural_similarity(
    images: Tensor, others: Tensor, window: int = 11, sigma: float = 1.5, darkest: float = -1.0
) -> Tensor:
    """Return the SSIM [B] of images [B, C, H, W]: Gaussian window, K1 = 0.01, K2 = 0.03, range 1 - `darkest`.

    Only positions where the whole window lies in the image count.

    Args:
        images: Images.
        others: What they are compared with.
        window: Side of the window.
        sigma: Its standard deviation in pixels.
        darkest: The smallest pixel value, -1 or 0; the largest is 1. The figure depends on it: it compares means.

    Raises:
        InputError: When the images are smaller than the window.
    """
    if min(images.shape[-2:]) < window:
        raise InputError(
            f"SSIM needs images of at least {window}x{window} pixels, got {tuple(images.shape[-2:])}"
        )
    x, y = images.double(), others.clamp(darkest, 1).double()
    offsets = torch.arange(window, dtype=torch.float64, device=x.device) - (window - 1) / 2
    line = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = torch.outer(line, line) / line.sum().square()
    channels = x.shape[1]
    kernel = kernel.expand(channels, 1, window, window)

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    c1, c2 = (0.01 * (1 - darkest)) ** 2, (0.03 * (1 - darkest)) ** 2
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.flatten(1).mean(dim=1)
