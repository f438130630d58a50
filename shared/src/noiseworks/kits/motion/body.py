"""Bodies: from rotations and a translation to joints and points on the surface.

A motion's last axis is 66 numbers of rotation vectors (22 joints, the global orientation first) and 3 of translation.
The global orientation turns about the pelvis, which lies at `translation + root` whatever the orientation.
"""

from typing import Protocol

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.motion.rotations import matrices_of
from torch import Tensor, nn

JOINTS = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
)
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
COUNT, ROTATIONS, NUMBERS = 22, 66, 69  # joints; numbers of rotations; numbers of a frame
FEET = (7, 8, 10, 11)  # both ankles, both feet: the joints that a contact is judged by
THIGH = SHIN = 0.40
ANKLE, BALL, SOLE = 0.08, 0.13, 0.03  # heights of ankle and ball of the foot, and how far the ball is ahead
HIP = (0.09, -0.09)
# Metres from the parent in the rest pose: x left, y up, z ahead.
OFFSETS = (
    (0.0, -0.35, 0.0),  # of the pelvis from the origin, as in SMPL-X: the translation is not the pelvis
    (HIP[0], HIP[1], 0.0),
    (-HIP[0], HIP[1], 0.0),
    (0.0, 0.11, -0.01),
    (0.0, -THIGH, 0.0),
    (0.0, -THIGH, 0.0),
    (0.0, 0.13, 0.0),
    (0.0, -SHIN, 0.0),
    (0.0, -SHIN, 0.0),
    (0.0, 0.06, 0.01),
    (0.0, SOLE - ANKLE, BALL),
    (0.0, SOLE - ANKLE, BALL),
    (0.0, 0.21, -0.01),
    (0.07, 0.12, -0.01),
    (-0.07, 0.12, -0.01),
    (0.0, 0.09, 0.03),
    (0.11, 0.04, 0.0),
    (-0.11, 0.04, 0.0),
    (0.26, 0.0, 0.0),
    (-0.26, 0.0, 0.0),
    (0.25, 0.0, 0.0),
    (-0.25, 0.0, 0.0),
)
# Rings of surface points: joint, offset from it, half widths across and ahead, points.
RINGS = (
    (0, (0.0, 0.02, 0.0), (0.14, 0.11), 6),
    (3, (0.0, 0.06, 0.0), (0.14, 0.11), 6),
    (9, (0.0, 0.08, 0.0), (0.15, 0.11), 6),
    (15, (0.0, 0.05, 0.02), (0.08, 0.09), 4),
    (1, (0.0, -0.12, 0.0), (0.07, 0.07), 4),
    (2, (0.0, -0.12, 0.0), (0.07, 0.07), 4),
    (1, (0.0, -0.30, 0.0), (0.06, 0.06), 2),
    (2, (0.0, -0.30, 0.0), (0.06, 0.06), 2),
    (4, (0.0, -0.12, 0.0), (0.05, 0.05), 4),
    (5, (0.0, -0.12, 0.0), (0.05, 0.05), 4),
)
# Single points: joint and offset. The first six are the feet's: heels, toes and outer sides; then the buttocks.
POINTS = (
    (7, (0.0, -ANKLE, -0.05)),
    (8, (0.0, -ANKLE, -0.05)),
    (10, (0.0, -SOLE, 0.09)),
    (11, (0.0, -SOLE, 0.09)),
    (10, (0.04, -SOLE, 0.0)),
    (11, (-0.04, -SOLE, 0.0)),
    (0, (0.08, -0.15, -0.05)),
    (0, (-0.08, -0.15, -0.05)),
    (15, (0.0, 0.15, 0.0)),
    (16, (0.13, 0.045, 0.0)),
    (16, (0.13, -0.045, 0.0)),
    (17, (-0.13, 0.045, 0.0)),
    (17, (-0.13, -0.045, 0.0)),
    (18, (0.0, 0.0, -0.045)),
    (19, (0.0, 0.0, -0.045)),
    (18, (0.13, 0.04, 0.0)),
    (18, (0.13, -0.04, 0.0)),
    (19, (-0.13, 0.04, 0.0)),
    (19, (-0.13, -0.04, 0.0)),
    (20, (0.08, 0.02, 0.0)),
    (20, (0.08, -0.02, 0.0)),
    (21, (-0.08, 0.02, 0.0)),
    (21, (-0.08, -0.02, 0.0)),
    (4, (0.0, 0.0, 0.055)),
    (5, (0.0, 0.0, 0.055)),
)
FOOT_MARKERS = tuple(range(6))
BUTTOCKS = (6, 7)


class BodyModel(Protocol):
    """What a method needs of a body.

    Attributes:
        root: Position of the pelvis without rotation and translation, [3].
        foot_markers: Indices of the markers on heels, toes and outer sides of the feet.
        buttocks: Indices of the two markers that one sits on.
    """

    root: Tensor
    foot_markers: tuple[int, ...]
    buttocks: tuple[int, ...]

    def __call__(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Return joints [..., 22, 3] and markers [..., M, 3] of a motion [..., 69]."""
        ...


def _levels(parents: tuple[int, ...]) -> list[list[int]]:
    depth = [0] * len(parents)
    for joint, parent in enumerate(parents[1:], 1):
        depth[joint] = depth[parent] + 1
    return [
        [joint for joint in range(len(parents)) if depth[joint] == level] for level in range(max(depth) + 1)
    ]


LEVELS = _levels(PARENTS)


def forward_kinematics(motion: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return joint positions [..., 22, 3] and global rotations [..., 22, 3, 3].

    Joints of one depth are turned together: nine small products instead of 21.

    Args:
        motion: [..., 69].
        offsets: From each joint's parent in the rest pose, the pelvis's from the origin, [22, 3].
    """
    local = matrices_of(motion[..., :ROTATIONS].unflatten(-1, (COUNT, 3)))
    turned: list[Tensor] = [local[..., 0, :, :]] * COUNT
    places: list[Tensor] = [motion[..., ROTATIONS:] + offsets[0]] * COUNT
    for level in LEVELS[1:]:
        above = [PARENTS[joint] for joint in level]
        parent = torch.stack([turned[joint] for joint in above], -3)
        rotation = parent @ local[..., level, :, :]
        place = torch.stack([places[joint] for joint in above], -2) + (
            parent @ offsets[level, :, None]
        ).squeeze(-1)
        for index, joint in enumerate(level):
            turned[joint], places[joint] = rotation[..., index, :, :], place[..., index, :]
    return torch.stack(places, -2), torch.stack(turned, -3)


class ProcBody(nn.Module):
    """A skeleton of 1.72 m with 67 points on capsules round its bones; synthetic, no licence.

    Attributes:
        root: Position of the pelvis without rotation and translation, [3].
    """

    foot_markers = FOOT_MARKERS
    buttocks = BUTTOCKS

    def __init__(self) -> None:
        super().__init__()
        joints, points = [joint for joint, _ in POINTS], [point for _, point in POINTS]
        for joint, (x, y, z), (across, ahead), count in RINGS:
            angles = 2 * torch.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
            for angle in angles.tolist():
                sine, cosine = torch.sin(torch.tensor(angle)).item(), torch.cos(torch.tensor(angle)).item()
                joints.append(joint)
                points.append((x + across * cosine, y, z + ahead * sine))
        self.joints_of_markers = joints
        self.register_buffer("offsets", torch.tensor(OFFSETS), persistent=False)
        self.register_buffer("points", torch.tensor(points), persistent=False)

    @property
    def root(self) -> Tensor:
        """Position of the pelvis without rotation and translation, [3]."""
        return self.offsets[0]

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Return joints [..., 22, 3] and markers [..., 67, 3] of a motion [..., 69]."""
        joints, turned = forward_kinematics(motion, self.offsets.to(motion))
        own = self.joints_of_markers
        points = (turned[..., own, :, :] @ self.points.to(motion)[:, :, None]).squeeze(-1)
        return joints, joints[..., own, :] + points


class SkinnedBody(nn.Module):
    """A body of SMPL's form (linear blend skinning), reduced to the vertices that are asked for.

    Hands, jaw and eyes stay in the rest pose, so that their joints move with the last of the 22 above them: their
    weights are added to that joint's. What is left of a mesh of 10,475 vertices is what is used, exactly.

    Args:
        template: Vertices of the rest pose, [V, 3].
        pose_directions: Pose-dependent offsets, [V, 3, P] with P >= 189 (nine numbers a joint after the first).
        regressor: Joints from vertices, [J, V].
        weights: Skinning weights, [V, J].
        parents: Of the J joints; the first 22 are SMPL's body.
        markers: Indices of the vertices that are kept, by default all.
        foot_markers: Positions in `markers` of heels, toes and outer sides.
        buttocks: Positions in `markers` of the two points that one sits on.

    Raises:
        InputError: When the parts do not fit each other.
    """

    def __init__(
        self,
        template: Tensor,
        pose_directions: Tensor,
        regressor: Tensor,
        weights: Tensor,
        parents: tuple[int, ...],
        markers: tuple[int, ...] | None = None,
        foot_markers: tuple[int, ...] = (),
        buttocks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        vertices = len(template)
        kept = list(range(vertices)) if markers is None else list(markers)
        if tuple(parents[:COUNT]) != PARENTS:
            raise InputError("the body's first 22 joints are not SMPL's")
        shapes = (tuple(regressor.shape), tuple(weights.shape), tuple(pose_directions.shape[:2]))
        if shapes != ((len(parents), vertices), (vertices, len(parents)), (vertices, 3)):
            raise InputError(
                f"a body of {vertices} vertices and {len(parents)} joints has parts of shapes {shapes}"
            )
        if kept and not 0 <= min(kept) <= max(kept) < vertices:
            raise InputError(f"markers must be vertices 0 to {vertices - 1}, got {min(kept)} to {max(kept)}")
        joints = regressor[:COUNT] @ template
        above = [max(parent, 0) for parent in PARENTS]
        offsets = joints - joints[above]
        offsets[0] = joints[0]
        merged = weights[:, :COUNT].clone()
        for joint in range(COUNT, len(parents)):
            last = joint
            while last >= COUNT:
                last = parents[last]
            merged[:, last] += weights[:, joint]
        self.foot_markers, self.buttocks = foot_markers, buttocks
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("rest", joints, persistent=False)
        self.register_buffer("template", template[kept], persistent=False)
        self.register_buffer("weights", merged[kept], persistent=False)
        directions = pose_directions[kept][..., : 9 * (COUNT - 1)]
        self.register_buffer("directions", directions, persistent=False)

    @property
    def root(self) -> Tensor:
        """Position of the pelvis without rotation and translation, [3]."""
        return self.offsets[0]

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Return joints [..., 22, 3] and the kept vertices [..., M, 3] of a motion [..., 69]."""
        joints, turned = forward_kinematics(motion, self.offsets.to(motion))
        local = matrices_of(motion[..., 3:ROTATIONS].unflatten(-1, (COUNT - 1, 3)))
        bent = (local - torch.eye(3, dtype=motion.dtype, device=motion.device)).flatten(-3)
        shaped = self.template.to(motion) + torch.einsum("vip,...p->...vi", self.directions.to(motion), bent)
        moved = joints - (turned @ self.rest.to(motion)[:, :, None]).squeeze(-1)
        weights = self.weights.to(motion)
        rotation = torch.einsum("vj,...jab->...vab", weights, turned)
        return joints, (rotation @ shaped[..., None]).squeeze(-1) + torch.einsum(
            "vj,...ja->...va", weights, moved
        )
