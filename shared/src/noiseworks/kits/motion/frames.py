"""The local frame of a pose, in which each round of a motion is generated.

Its origin is the pelvis; x runs along the hips to the right, made horizontal; z is up; y = z x x is ahead. The
body turns about its pelvis and not about the translation's origin, so the translation's frame change needs the root.
"""

from dataclasses import dataclass

import torch
from noiseworks.kits.motion.body import ROTATIONS
from noiseworks.kits.motion.rotations import (
    continuous,
    multiply,
    quaternions_of,
    quaternions_of_matrices,
    vectors_of,
)
from torch import Tensor

# The orientation of a body of SMPL's rest pose (y up, facing z) that stands in the middle of its local frame: half a
# turn about (0, 1, 1). Rotation vectors near it have lengths near pi; a body upright reaches neither 0 nor 2 pi.
UPRIGHT = (0.0, 0.0, 0.5**0.5, 0.5**0.5)


@dataclass(frozen=True)
class Frame:
    """A local frame: world = rotation local + origin.

    Attributes:
        rotation: Local axes as columns in the world, about z, [B, 3, 3].
        origin: Of the local frame, in the world, [B, 3].
    """

    rotation: Tensor
    origin: Tensor

    def to_world(self, points: Tensor) -> Tensor:
        """Return local points [B, ..., 3] in the world."""
        return torch.einsum("bij,b...j->b...i", self.rotation.to(points), points) + self._origin(points)

    def to_local(self, points: Tensor) -> Tensor:
        """Return points [B, ..., 3] of the world in the frame."""
        return torch.einsum("bji,b...j->b...i", self.rotation.to(points), points - self._origin(points))

    def _origin(self, points: Tensor) -> Tensor:
        return self.origin.to(points).reshape(-1, *[1] * (points.ndim - 2), 3)

    def motion_to_local(self, motion: Tensor, root: Tensor) -> Tensor:
        """Return a motion [B, F, 69] of the world in the frame: R'(translation + root - origin) - root, R' orientation.

        Args:
            motion: In the world.
            root: The body's pelvis without rotation and translation, [3].
        """
        return _moved(motion, self.rotation.mT, self.to_local(motion[..., ROTATIONS:] + root) - root)

    def motion_to_world(self, motion: Tensor, root: Tensor) -> Tensor:
        """Return a local motion [B, F, 69] in the world; the arguments are those of `motion_to_local`."""
        return _moved(motion, self.rotation, self.to_world(motion[..., ROTATIONS:] + root) - root)


def _moved(motion: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    turn = quaternions_of_matrices(rotation.to(motion))[:, None]
    turned = multiply(turn, quaternions_of(motion[..., :3]))
    vectors = vectors_of(continuous(turned, turned.new_tensor(UPRIGHT)))
    return torch.cat((vectors, motion[..., 3:ROTATIONS], translation), -1)


def local_frame(joints: Tensor) -> Frame:
    """Return the local frame of poses, from joints [B, 22, 3] in the world."""
    right = joints[:, 2, :2] - joints[:, 1, :2]
    right = right / right.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    zero, one = torch.zeros_like(right[:, 0]), torch.ones_like(right[:, 0])
    x = torch.stack((right[:, 0], right[:, 1], zero), -1)
    y = torch.stack((-right[:, 1], right[:, 0], zero), -1)
    z = torch.stack((zero, zero, one), -1)
    return Frame(torch.stack((x, y, z), -1), joints[:, 0])
