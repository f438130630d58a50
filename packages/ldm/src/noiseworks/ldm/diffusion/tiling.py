"""Convolutional work at sizes beyond one window: overlapping windows, weighted and added up (section 4.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from noiseworks.core.checks import check_number
from noiseworks.ldm.conditioning.conditioners import Condition
from noiseworks.ldm.diffusion.objective import run_unet
from torch import Tensor, nn

CLIP_MIN, CLIP_MAX = 0.01, 0.5


@dataclass(frozen=True)
class Tiles:
    """How a map is cut.

    Attributes:
        size: Side of a window in the map's pixels; a smaller map is one window.
        stride: Distance of neighbouring windows, at most `size`. The last window is moved in to end at the
            border.
        batch_size: Windows that go through the network at once.

    Raises:
        InputError: When a number is out of its range.
    """

    size: int = 128
    stride: int = 64
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_number("tile size", self.size, low=1, integer=True)
        check_number("tile stride", self.stride, low=1, high=self.size, integer=True)
        check_number("tile batch_size", self.batch_size, low=1, integer=True)

    def starts(self, length: int) -> list[int]:
        """Return the first pixels of the windows that cover `length` pixels."""
        if length <= self.size:
            return [0]
        return [*range(0, length - self.size, self.stride), length - self.size]


def window_weights(height: int, width: int) -> Tensor:
    """Return weights `[height, width]`: the distance to the window's border in window sides, in [.01, .5]."""

    def distance(length: int) -> Tensor:
        position = torch.linspace(0, 1, length, dtype=torch.float64) if length > 1 else torch.full((1,), 0.5)
        return torch.minimum(position, 1 - position)

    edge = torch.minimum(distance(height)[:, None], distance(width)[None])
    return edge.clamp(CLIP_MIN, CLIP_MAX).float()


def overlap_add(
    function: Callable[[Tensor, Tensor], Tensor], maps: Tensor, tiles: Tiles, scale: Fraction | int = 1
) -> Tensor:
    """Return a network's output for large maps, run on overlapping windows in batches.

    Every output pixel is the average of the windows that cover it, weighted by `window_weights`; the weights
    divided by their sum are a partition of unity.

    Args:
        function: (windows `[n, C, k, k]`, the row of `maps` each window comes from `[n]`) -> `[n, C', sk,
            sk]`.
        maps: `[B, C, H, W]`.
        tiles: The windows; size and stride times `scale` must be whole.
        scale: Output pixels per input pixel: 4 for decoding, 1/4 for encoding at f = 4.

    Returns:
        `[B, C', sH, sW]`.
    """
    rows, _, height, width = maps.shape
    scale = Fraction(scale)
    window_h, window_w = min(tiles.size, height), min(tiles.size, width)
    places = [
        (row, top, left)
        for top in tiles.starts(height)
        for left in tiles.starts(width)
        for row in range(rows)
    ]
    if len(places) == rows:  # one window a row: nothing overlaps
        indices = torch.arange(rows, device=maps.device).split(tiles.batch_size)
        return torch.cat([function(maps[part], part) for part in indices])
    weights = window_weights(int(window_h * scale), int(window_w * scale)).to(maps.device)
    total = weight_sum = None
    for first in range(0, len(places), tiles.batch_size):
        chunk = places[first : first + tiles.batch_size]
        windows = torch.stack([maps[r, :, y : y + window_h, x : x + window_w] for r, y, x in chunk])
        outputs = function(windows, torch.tensor([r for r, _, _ in chunk], device=maps.device))
        if total is None:
            size = (int(height * scale), int(width * scale))
            total = outputs.new_zeros((rows, outputs.shape[1], *size))
            weight_sum = outputs.new_zeros((rows, 1, *size))
        for output, (row, top, left) in zip(outputs, chunk, strict=True):
            y, x = int(top * scale), int(left * scale)
            area = (row, slice(None), slice(y, y + weights.shape[0]), slice(x, x + weights.shape[1]))
            total[area] += weights * output
            weight_sum[area] += weights
    return total / weight_sum


def tiled_unet(
    unet: nn.Module, latents: Tensor, timestep: Tensor, condition: Condition, tiles: Tiles
) -> Tensor:
    """Return a U-Net's prediction for large latents; the condition's maps are cut along."""
    channels = latents.shape[1]
    joined = latents if condition.concat is None else torch.cat([latents, condition.concat], dim=1)

    def predict(windows: Tensor, rows: Tensor) -> Tensor:
        part = Condition(
            concat=None if condition.concat is None else windows[:, channels:],
            crossattn=None if condition.crossattn is None else condition.crossattn[rows],
            adm=None if condition.adm is None else condition.adm[rows],
        )
        return run_unet(unet, windows[:, :channels], timestep, part)

    return overlap_add(predict, joined, tiles)


def tiled_decode(vae: nn.Module, latents: Tensor, tiles: Tiles, factor: int) -> Tensor:
    """Return the decoder's images `[B, 3, fh, fw]` of latents `[B, C, h, w]`; tiles count latent pixels."""
    return overlap_add(lambda windows, _: vae.decode(windows).sample, latents, tiles, factor)


def tiled_encode(vae: nn.Module, images: Tensor, tiles: Tiles, factor: int) -> Tensor:
    """Return latents (a posterior's mode) of images `[B, 3, fh, fw]`; tiles count latent pixels."""
    pixels = Tiles(tiles.size * factor, tiles.stride * factor, tiles.batch_size)

    def encode(windows: Tensor, _: Tensor) -> Tensor:
        encoded = vae.encode(windows)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    return overlap_add(encode, images, pixels, Fraction(1, factor))
