"""How visible a protection is, and how far it moves edits and latents. PSNR and SSIM are those of `kits.images`."""

import math
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
from noiseworks.kits.protection.hosts import Host
from torch import Tensor

SCALES, ANGLES = (0.7, 1.0, 1.5, 2.0), 6
TILE = 512  # pixels of a side that are measured at once


def visibility(originals: Tensor, protected: Tensor) -> dict[str, Tensor]:
    """Return how visible a change is, each [B]: largest change in levels, PSNR, SSIM of the channels, feature distance.

    Pictures with a side above `TILE` are looked at in tiles of about that side, so that memory does not grow with
    photographs: SSIM and feature distance are means over tiles by area, the fine share is one by the change's energy.

    Args:
        originals: [B, 3, H, W] in [0, 1].
        protected: The same, changed.
    """
    change = protected - originals
    sums = {
        name: originals.new_zeros(len(originals), dtype=torch.float64) for name in ("ssim", "feature", "fine")
    }
    energy = sums["fine"].clone()
    for rows, columns in _tiles(*originals.shape[-2:]):
        before, after = originals[..., rows, columns], protected[..., rows, columns]
        moved = change[..., rows, columns]
        area = before.shape[-2] * before.shape[-1]
        power = moved.double().square().sum(dim=(1, 2, 3))
        sums["ssim"] += area * structural_similarity(before, after, darkest=0.0)
        sums["feature"] += area * feature_distance(before, after)
        sums["fine"] += power * fine_share(moved)
        energy += power
    area = originals.shape[-2] * originals.shape[-1]
    return {
        "largest_255": change.abs().flatten(1).amax(dim=1) * 255,
        "psnr": psnr(originals, protected),
        "ssim": sums["ssim"] / area,
        "feature_distance": sums["feature"] / area,
        "fine_share": sums["fine"] / energy.clamp(min=1e-30),
    }


def _tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """Return slices of rows and columns that cover a picture, of nearly equal sides of at most `TILE`."""

    def parts(side: int) -> list[slice]:
        count = math.ceil(side / TILE)
        ends = [side * i // count for i in range(count + 1)]
        return [slice(begin, end) for begin, end in pairwise(ends)]

    return [(rows, columns) for rows in parts(height) for columns in parts(width)]


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the PSNR [B] in dB of images in [0, 1]."""
    return peak_signal_to_noise(2 * images.double() - 1, 2 * others.double() - 1)


def fine_share(change: Tensor) -> Tensor:
    """Return the share of a change's energy above half the Nyquist frequency, [B]; 0 where nothing changed."""
    power = torch.fft.fft2(change.double()).abs().square().sum(dim=1)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64).abs() for n in change.shape[-2:])
    fine = torch.maximum(rows[:, None], columns[None]) > 0.25
    return (power * fine).sum(dim=(1, 2)) / power.sum(dim=(1, 2)).clamp(min=1e-30)


@cache
def _bank() -> tuple[Tensor, ...]:
    """Return oriented derivatives of Gaussians, one [6, 1, k, k] a scale, of unit sum of squares."""
    banks = []
    for sigma in SCALES:
        radius = math.ceil(3 * sigma)
        axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        bell = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
        turns = [math.pi * k / ANGLES for k in range(ANGLES)]
        filters = torch.stack([(x * math.cos(a) + y * math.sin(a)) * bell for a in turns])
        banks.append((filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1))[:, None])
    return tuple(banks)


def feature_distance(images: Tensor, others: Tensor) -> Tensor:
    """Return a distance of local structure [B]: squared differences of normalised edge responses, over 4 scales.

    Responses to six orientations are divided by their local contrast. Nothing is learned, nothing is downloaded; values
    are not those of LPIPS.

    Args:
        images: [B, 3, H, W] in [0, 1].
        others: The same shape.
    """
    total = images.new_zeros(len(images))
    for bank in _bank():
        found = [_responses(batch, bank.to(batch)) for batch in (images, others)]
        total = total + (found[0] - found[1]).square().sum(dim=1).mean(dim=(1, 2))
    return total / len(SCALES)


def _responses(images: Tensor, bank: Tensor) -> Tensor:
    pad = bank.shape[-1] // 2
    flat = F.pad(images, (pad, pad, pad, pad), mode="replicate").flatten(0, 1)[:, None]
    responses = F.conv2d(flat, bank).unflatten(0, (len(images), 3)).flatten(1, 2)
    contrast = responses.square().sum(dim=1, keepdim=True).sqrt()
    return responses / (F.avg_pool2d(contrast, 5, 1, 2, count_include_pad=False) + 0.05)


@torch.no_grad()
def latent_shift(host: Host, originals: Tensor, protected: Tensor) -> Tensor:
    """Return |z(x') - z(x)| / |z(x)| of posterior means, [B]."""
    before, after = host.encode(originals), host.encode(protected)
    return (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
