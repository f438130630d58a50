"""Joining a round to what came before (section 3.4): rotations in power space, translation along a line."""

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.motion.body import COUNT, ROTATIONS
from noiseworks.kits.motion.rotations import power_blend, quaternions_of, vectors_of
from torch import Tensor


def blend(before: Tensor, after: Tensor, history: int) -> Tensor:
    """Return two motions [n, 69] and [m, 69] as one of n + m - history frames.

    The last `history` frames of `before` are the same moments as the first of `after`. Frame k = 1 ... H of them is
    (1 - w) p + w q in translation and (R_q R_p^-1)^w R_p in every rotation, with w = k / (H + 1).

    Args:
        before: Motion in the world.
        after: Motion in the world.
        history: H, frames that they share; 0 puts them one after the other.

    Raises:
        InputError: When a motion is shorter than what they share.
    """
    if not 0 <= history <= min(len(before), len(after)):
        raise InputError(f"motions of {len(before)} and {len(after)} frames cannot share {history}")
    if history == 0:
        return torch.cat((before, after))
    weight = torch.arange(1, history + 1, dtype=before.dtype, device=before.device) / (history + 1)
    return torch.cat(
        (before[:-history], between(before[-history:], after[:history], weight), after[history:])
    )


def between(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return poses [n, 69] at weights [n] between two: 0 the first, 1 the second."""
    rotations = [quaternions_of(pose[..., :ROTATIONS].unflatten(-1, (COUNT, 3))) for pose in (start, end)]
    turned = vectors_of(power_blend(*rotations, weight[:, None].expand(-1, COUNT))).flatten(-2)
    place = torch.lerp(start[..., ROTATIONS:], end[..., ROTATIONS:], weight[:, None])
    return torch.cat((turned, place), -1)
