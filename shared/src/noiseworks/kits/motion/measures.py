"""What a motion is worth, beside whether it gets where it should."""

import numpy as np
import torch
from noiseworks.kits.motion.body import FEET
from noiseworks.kits.motion.scenes import Scene
from torch import Tensor

SPEED, HEIGHT = 0.075, 0.05  # m/s and metres that a standing foot may have


def contact_score(joints: Tensor, fps: float, floor: float | Tensor = 0.0) -> Tensor:
    """Return how well some foot stands on the floor, means over the inner frames, [B].

    exp(-max(0, slowest foot's speed - 0.075)) exp(-max(0, |lowest foot's height| - 0.05)), with speeds as central
    differences.

    Args:
        joints: [B, F, 22, 3], z up.
        fps: Frames a second.
        floor: Its height, or one a motion, [B].
    """
    feet = joints[..., FEET, :]
    speed = (feet[:, 2:] - feet[:, :-2]).norm(dim=-1).amin(-1) * fps / 2
    level = floor[:, None, None] if isinstance(floor, Tensor) else floor
    height = (feet[:, 1:-1, :, 2] - level).abs().amin(-1)
    return ((-(speed - SPEED).clamp(min=0)).exp() * (-(height - HEIGHT).clamp(min=0)).exp()).mean(1)


def penetration(markers: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
    """Return how deep the surface is in the scene: centimetres summed over markers, mean and largest over frames, [B].

    Args:
        markers: In the world, [B, F, M, 3].
        scene: B scenes.
    """
    depth = 100 * (-scene.distance(markers)).clamp(min=0).sum(-1)
    return depth.mean(1), depth.amax(1)


def goal_distance(joints: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest horizontal distance of any joint from a goal, and its frame, [B] each.

    Args:
        joints: [B, F, 22, 3].
        goals: x, y, [B, 2].
    """
    near = (joints[..., :2] - goals[:, None, None].to(joints)).norm(dim=-1).amin(-1)
    found = near.min(1)
    return found.values, found.indices


def acceleration(joints: Tensor, fps: float) -> Tensor:
    """Return the mean over joints of the length of accelerations, m/s^2, [B, F - 2]; entry i belongs to frame i + 1."""
    return ((joints[:, 2:] - 2 * joints[:, 1:-1] + joints[:, :-2]) * fps**2).norm(dim=-1).mean(-1)


def diversity(joints: Tensor) -> float:
    """Return the mean distance of corresponding joints over all pairs of motions [N, F, 22, 3], metres."""
    pairs = torch.combinations(torch.arange(len(joints)), 2)
    return float((joints[pairs[:, 0]] - joints[pairs[:, 1]]).norm(dim=-1).mean())


class Naturalness:
    """The Frechet distance of motions' features from those of recorded ones.

    Features are hand-made (means and deviations of joint speeds, of knee and elbow angles, of the pelvis's height),
    standardised by the recorded motions. The figure can be compared within one testbed alone.

    Args:
        joints: Of recorded motions, [N, F, 22, 3].
        fps: Frames a second.
    """

    def __init__(self, joints: Tensor, fps: float) -> None:
        self.fps = fps
        features = self.features(joints)
        self.mean, self.std = features.mean(0), features.std(0) + 1e-3
        self.reference = self._moments(features)

    def features(self, joints: Tensor) -> np.ndarray:
        """Return features [N, 18] of motions [N, F, 22, 3]."""
        x = joints.double()
        speed = (x[:, 1:] - x[:, :-1]).norm(dim=-1) * self.fps
        groups = [speed[..., list(group)].mean(-1) for group in ((0,), (4, 5), (10, 11), (15,), (20, 21))]
        angles = [
            _angle(x[..., a, :], x[..., b, :], x[..., c, :])
            for a, b, c in ((1, 4, 7), (2, 5, 8), (16, 18, 20))
        ]
        series = [*groups, *angles, x[..., 0, 2]]
        return torch.stack([f(one, 1) for one in series for f in (torch.mean, torch.std)], -1).numpy()

    def distance(self, joints: Tensor) -> float:
        """Return the Frechet distance of motions [N, F, 22, 3]; N must be above the 18 features to mean much."""
        mean, cov = self._moments(self.features(joints))
        other, own = self.reference
        root = np.linalg.eigvals(cov @ own)
        trace = np.trace(cov) + np.trace(own) - 2 * np.sqrt(np.clip(root.real, 0, None)).sum()
        return float(((mean - other) ** 2).sum() + max(trace, 0.0))

    def _moments(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = (features - self.mean) / self.std
        return scaled.mean(0), np.cov(scaled, rowvar=False)


def _angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    one, other = a - b, c - b
    cosine = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)).clamp(min=1e-9)
    return torch.arccos(cosine.clamp(-1, 1))
