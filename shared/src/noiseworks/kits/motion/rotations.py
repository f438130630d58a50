"""Rotations: vectors (axis times angle), matrices, and quaternions with the real part first.

A rotation vector of length a and one of length 2 pi - a the other way round are the same rotation. Networks need one
that does not jump, so `vectors_of` takes the quaternion's sign as it is and `continuous` keeps signs along a motion;
vectors then have lengths up to 2 pi.
"""

import torch
from torch import Tensor

SMALL = 1e-8  # of a squared angle, below which series are used


def matrices_of(vectors: Tensor) -> Tensor:
    """Return rotation matrices [..., 3, 3] of rotation vectors [..., 3] (Rodrigues), smooth at 0."""
    square = vectors.square().sum(-1)
    small = square < SMALL
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    first = torch.where(small, 1 - square / 6, angle.sin() / angle)[..., None, None]
    second = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / safe)[..., None, None]
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    outer = vectors[..., :, None] * vectors[..., None, :]
    eye = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return eye + first * cross + second * (outer - square[..., None, None] * eye)


def quaternions_of(vectors: Tensor) -> Tensor:
    """Return quaternions [..., 4] of rotation vectors [..., 3]; the sign follows the length, up to 2 pi."""
    square = vectors.square().sum(-1, keepdim=True)
    small = square < SMALL
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    share = torch.where(small, 0.5 - square / 48, (angle / 2).sin() / angle)
    real = torch.where(small, 1 - square / 8, (angle / 2).cos())
    return torch.cat((real, share * vectors), -1)


def vectors_of(quaternions: Tensor) -> Tensor:
    """Return rotation vectors [..., 3] of lengths 0 to 2 pi of unit quaternions [..., 4]; -q gives the other length."""
    real, rest = quaternions[..., :1], quaternions[..., 1:]
    square = rest.square().sum(-1, keepdim=True)
    small = square < SMALL
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    angle = 2 * torch.atan2(sine, real)
    # Near the identity 2 v / w; near -1, a full turn, no direction is better than another and the short way is taken.
    return torch.where(small, 2 * rest / real, angle / sine * rest)


def quaternions_of_matrices(matrices: Tensor) -> Tensor:
    """Return unit quaternions [..., 4] of rotation matrices [..., 3, 3], the largest component positive."""
    m = matrices
    diagonal = m.diagonal(dim1=-2, dim2=-1)
    x, y, z = diagonal.unbind(-1)
    # Row i is the quaternion times four times its i-th component; the row of the largest one is well conditioned.
    rows = torch.stack(
        (
            torch.stack(
                (
                    1 + x + y + z,
                    m[..., 2, 1] - m[..., 1, 2],
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 1, 0] - m[..., 0, 1],
                ),
                -1,
            ),
            torch.stack(
                (
                    m[..., 2, 1] - m[..., 1, 2],
                    1 + x - y - z,
                    m[..., 0, 1] + m[..., 1, 0],
                    m[..., 0, 2] + m[..., 2, 0],
                ),
                -1,
            ),
            torch.stack(
                (
                    m[..., 0, 2] - m[..., 2, 0],
                    m[..., 0, 1] + m[..., 1, 0],
                    1 - x + y - z,
                    m[..., 1, 2] + m[..., 2, 1],
                ),
                -1,
            ),
            torch.stack(
                (
                    m[..., 1, 0] - m[..., 0, 1],
                    m[..., 0, 2] + m[..., 2, 0],
                    m[..., 1, 2] + m[..., 2, 1],
                    1 - x - y + z,
                ),
                -1,
            ),
        ),
        -2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return row / row.norm(dim=-1, keepdim=True)


def multiply(one: Tensor, other: Tensor) -> Tensor:
    """Return the quaternion of turning by `other` first and by `one` then, [..., 4]."""
    a, u = one[..., :1], one[..., 1:]
    b, v = other[..., :1], other[..., 1:]
    real = a * b - (u * v).sum(-1, keepdim=True)
    return torch.cat((real, a * v + b * u + torch.linalg.cross(*torch.broadcast_tensors(u, v))), -1)


def conjugate(quaternions: Tensor) -> Tensor:
    """Return the inverse of unit quaternions [..., 4]."""
    return torch.cat((quaternions[..., :1], -quaternions[..., 1:]), -1)


def continuous(quaternions: Tensor, near: Tensor) -> Tensor:
    """Return quaternions [..., F, 4] with signs so that each is near the one before, and the first near `near`.

    Args:
        quaternions: Along a motion.
        near: [..., 4] or [4], whose side the first one takes.
    """
    first = (quaternions[..., :1, :] * near[..., None, :]).sum(-1)
    steps = (quaternions[..., 1:, :] * quaternions[..., :-1, :]).sum(-1)
    dots = torch.cat((first, steps), -1)
    signs = torch.where(dots < 0, -torch.ones_like(dots), torch.ones_like(dots)).cumprod(-1)
    return quaternions * signs[..., None]


def power_blend(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return the rotation (end start^-1)^w start as a quaternion [..., 4]: a geodesic, the shorter way round.

    Args:
        start: Unit quaternions at weight 0.
        end: Unit quaternions at weight 1.
        weight: [...] in [0, 1].
    """
    turn = multiply(end, conjugate(start))
    turn = torch.where(turn[..., :1] < 0, -turn, turn)
    return multiply(quaternions_of(weight[..., None] * vectors_of(turn)), start)
