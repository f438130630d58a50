"""Blended and pasted images for fine-tuning, and the loss of their labels."""

import torch
from torch import Tensor


def mixed(images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Return images, of which each was mixed with another of the batch, and the shares of their classes.

    One of the two ways is drawn for the batch where both are asked for (Zhang et al. 2018, Yun et al. 2019).

    Args:
        images: (B, C, H, W).
        labels: (B,).
        classes: K.
        mixup: α of `x = λ a + (1 - λ) b` with λ from Beta(α, α); 0 for none.
        cutmix: α of the same for a box of area 1 - λ of b in a, where λ is then the area that is left; 0 for none.

    Returns:
        Images (B, C, H, W), and float32 shares (B, K).
    """
    shares = torch.nn.functional.one_hot(labels, classes).float()
    if not (mixup or cutmix):
        return images, shares
    pasted = bool(cutmix) and (not mixup or float(torch.rand(())) < 0.5)
    alpha = torch.tensor(cutmix if pasted else mixup)
    kept = float(torch.distributions.Beta(alpha, alpha).sample())
    others = images.flip(0)
    if pasted:
        images, kept = _pasted(images, others, kept)
    else:
        images = kept * images + (1 - kept) * others
    return images, kept * shares + (1 - kept) * shares.flip(0)


def _pasted(images: Tensor, others: Tensor, kept: float) -> tuple[Tensor, float]:
    height, width = images.shape[-2:]
    half = (1 - kept) ** 0.5 / 2
    row, column = torch.rand(2).tolist()
    top, bottom = (round(min(max(row + side, 0.0), 1.0) * height) for side in (-half, half))
    left, right = (round(min(max(column + side, 0.0), 1.0) * width) for side in (-half, half))
    made = images.clone()
    made[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return made, 1 - (bottom - top) * (right - left) / (height * width)


def smoothed(shares: Tensor, smoothing: float) -> Tensor:
    """Return shares (B, K) of which a part is spread over all classes evenly."""
    return shares * (1 - smoothing) + smoothing / shares.shape[1]
