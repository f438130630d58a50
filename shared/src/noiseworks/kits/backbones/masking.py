"""Random masks of patches: which tokens an encoder sees, and how a decoder gets all of them back in place."""

import math
from typing import NamedTuple

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.training import Rows
from torch import Tensor

MASK_KINDS = ("random", "block", "grid")


class Masks(NamedTuple):
    """Which patches of each image are kept.

    Attributes:
        kept: Their places (B, K), in the order in which the encoder gets them.
        restore: Where each place's token stands in [kept, removed], (B, N).
        removed: Whether a place is removed, bool (B, N); exactly N - K a row.
    """

    kept: Tensor
    restore: Tensor
    removed: Tensor

    @classmethod
    def of_scores(cls, scores: Tensor, keep: int) -> "Masks":
        """Keep the `keep` places of lowest score of each row of scores (B, N)."""
        order = scores.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1)
        return cls(order[:, :keep], restore, restore >= keep)

    def of_rows(self, own: Rows) -> "Masks":
        """Return those of a process's images, of masks of the whole batch."""
        return Masks(*(own.take(part) for part in self))


def keep_count(places: int, ratio: float) -> int:
    """Return `int(N (1 - ρ))`, the number of kept patches.

    Args:
        places: N.
        ratio: ρ, the share that is removed, from 0 to below 1.

    Raises:
        InputError: When the ratio is out of range or none is left.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"a mask ratio must be at least 0 and below 1, got {ratio}")
    keep = int(places * (1 - ratio) + 1e-9)  # 10 (1 - 0.9) is 1 and not 0.9999999999999998
    if not keep:
        raise InputError(f"a mask ratio of {ratio} leaves none of {places} patches; use a smaller one")
    return keep


def random_masks(
    batch: int,
    places: int,
    keep: int,
    *,
    kind: str = "random",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Masks:
    """Draw masks, one an image.

    Args:
        batch: Images.
        places: Patches N of an image; a square number unless `kind` is random.
        keep: Patches that are kept.
        kind: random; block removes the square around a random place (as far as the border lets it), and grid keeps
            patches as evenly spread as an ordered dither has them, shifted at random (He et al. 2022, figure 6).
        generator: Of the draws; the global one by default.
        device: Where the masks are.
    """
    uniform = torch.rand(batch, places, generator=generator, device=device)
    if kind == "random":
        return Masks.of_scores(uniform, keep)
    side = math.isqrt(places)
    centre = (torch.rand(batch, 2, generator=generator, device=device) * side).long()
    rows, columns = torch.arange(places, device=device) // side, torch.arange(places, device=device) % side
    if kind == "block":
        far = torch.maximum((rows - centre[:, :1]).abs(), (columns - centre[:, 1:]).abs())
        return Masks.of_scores(uniform - far, keep)
    rank = _dither(side).to(device)
    shifted = rank[(rows + centre[:, :1]) % side, (columns + centre[:, 1:]) % side]
    return Masks.of_scores(shifted.float(), keep)


def _dither(side: int) -> Tensor:
    """Return Bayer's order of the places of a square, float32 (side, side)."""
    table, size = torch.zeros(1, 1), 1
    while size < side:
        table = torch.cat(
            [torch.cat([4 * table, 4 * table + 2], 1), torch.cat([4 * table + 3, 4 * table + 1], 1)], 0
        )
        size *= 2
    return table[:side, :side]


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the tokens (B, K, D) at places (B, K) of tokens (B, N, D)."""
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))


def restore_tokens(kept: Tensor, filler: Tensor, restore: Tensor) -> Tensor:
    """Return (B, N, D): kept tokens (B, K, D) at their places, the filler (1, 1, D) at all others."""
    missing = restore.shape[1] - kept.shape[1]
    every = torch.cat([kept, filler.to(kept.dtype).expand(len(kept), missing, -1)], dim=1)
    return gather_tokens(every, restore)


def to_patches(images: Tensor, patch: int) -> Tensor:
    """Return patches (B, N, patch² C) of images (B, C, H, W): row by row, each in (row, column, channel) order.

    Raises:
        InputError: When the patch does not divide the image.
    """
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise InputError(f"images must have sides that are multiples of patch {patch}, got {height}x{width}")
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, q)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def to_images(patches: Tensor, patch: int, channels: int) -> Tensor:
    """Return the square images (B, C, H, W) of `to_patches`."""
    side = math.isqrt(patches.shape[1])
    cut = patches.reshape(-1, side, side, patch, patch, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, side * patch, side * patch)


def masked_mean(errors: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of errors (B, N, d) over chosen places (B, N): `mean(M e) / mean(M)`.

    Args:
        errors: One of each number of each patch.
        chosen: bool, with at least one place.
    """
    return (errors.mean(-1) * chosen).sum() / chosen.sum()
