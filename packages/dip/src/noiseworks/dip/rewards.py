"""What a motion should do, as losses that can be differentiated (section 3.3).

Each is a function of joints [B, F, 22, 3] and surface markers [B, F, M, 3] in the round's local frame, and of what the
round is about (`Setting`); it returns one number a motion, [B]. The goal is a sum over frames and joints, every other
loss a mean. The released code adds the means to an array of goals [B, F, 22] before it sums, so that a mean counts
F * 22 times (and B times more in a batch): `RewardSet` has that factor without the batch; read the weights with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.dip.options import ACTIONS
from noiseworks.kits.motion import Frame
from noiseworks.kits.motion.scenes import Scene
from torch import Tensor

FAST, HARD = 0.5, 50.0  # m/s that a foot may slide, m/s^2 that a joint may take
NEAR_FLOOR, NEAR_SURFACE, DEEP = 0.01, 0.03, 0.03  # metres: of feet, of the body, and into furniture


@dataclass(frozen=True)
class Goals:
    """Where joints shall be.

    Attributes:
        points: In the local frame, [B, F, 22, 3].
        mask: Which of them are wanted, [B, F, 22].
        flat: Which are wanted in x and y only, [B, F, 22].
    """

    points: Tensor
    mask: Tensor
    flat: Tensor

    def key_frames(self) -> Tensor:
        """Return K, the largest number of frames in which one joint is wanted, of either kind, [B].

        Raises:
            InputError: When nothing is wanted of some motion, so that no step has a length.
        """
        found = torch.stack([kind.sum(1).amax(-1) for kind in (self.mask, self.flat)]).amax(0)
        if bool((found == 0).any()):
            raise InputError("the policy needs at least one goal for every motion")
        return found


@dataclass(frozen=True)
class Setting:
    """What a round is about.

    Attributes:
        goals: Where joints shall be.
        frame: The round's local frame in the world.
        actions: Index of each motion's action, [B].
        fps: Frames a second.
        scene: B scenes, None for an empty world whose floor is at 0.
        feet: Indices of the markers on heels, toes and outer sides.
    """

    goals: Goals
    frame: Frame
    actions: Tensor
    fps: float
    scene: Scene | None
    feet: tuple[int, ...]


Reward = Callable[[Tensor, Tensor, Setting], Tensor]


def length(vectors: Tensor) -> Tensor:
    """Return lengths [...] of vectors [..., n], with slope 0 at 0."""
    square = vectors.square().sum(-1)
    away = square > 0
    return torch.where(
        away, torch.where(away, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )


def goal(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return the sum of distances (not squared) of joints from where they shall be."""
    goals = setting.goals
    apart = joints - goals.points
    whole = length(torch.where(goals.mask[..., None], apart, torch.zeros_like(apart)))
    flat = length(torch.where(goals.flat[..., None], apart[..., :2], torch.zeros_like(apart[..., :2])))
    return (whole + flat).flatten(1).sum(1)


def skating(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how much faster than 0.5 m/s the slowest foot marker moves, a mean over frames."""
    feet = markers[:, :, list(setting.feet)]
    speed = length(feet[:, 1:] - feet[:, :-1]).amin(-1) * setting.fps
    return (speed - FAST).clamp(min=0).mean(1)


def smoothness(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how far components of joints' acceleration are above 50 m/s^2, a mean; one-sided, as released."""
    return _smoothness(joints, setting, symmetric=False)


def smoothness_symmetric(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how far components of joints' acceleration are beyond 50 m/s^2 either way, a mean."""
    return _smoothness(joints, setting, symmetric=True)


def _smoothness(joints: Tensor, setting: Setting, *, symmetric: bool) -> Tensor:
    pull = (joints[:, 2:] - 2 * joints[:, 1:-1] + joints[:, :-2]) * setting.fps**2
    pull = pull.abs() if symmetric else pull
    return (pull - HARD).clamp(min=0).flatten(1).mean(1)


def penetration(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how deep markers are in the scene beyond 3 cm, a mean over frames and markers."""
    if setting.scene is None:
        return joints.new_zeros(len(joints))
    apart = setting.scene.distance(setting.frame.to_world(markers))
    return (-apart - DEEP).clamp(min=0).flatten(1).mean(1)


def foot_contact(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how far the lowest foot marker is from the floor, beyond 1 cm, a mean over frames."""
    floor = 0.0 if setting.scene is None else setting.scene.floor
    height = markers[:, :, list(setting.feet), 2] + setting.frame.origin[:, None, None, 2].to(markers)
    return ((height.amin(-1) - floor).abs() - NEAR_FLOOR).clamp(min=0).mean(1)


def body_contact(joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
    """Return how far the marker that is nearest to the scene is from it, beyond 3 cm, a mean over frames."""
    if setting.scene is None:
        return joints.new_zeros(len(joints))
    apart = setting.scene.distance(setting.frame.to_world(markers))
    return (apart.amin(-1).abs() - NEAR_SURFACE).clamp(min=0).mean(1)


REWARDS: Mapping[str, Reward] = {
    "goal": goal,
    "skating": skating,
    "smoothness": smoothness,
    "smoothness_symmetric": smoothness_symmetric,
    "penetration": penetration,
    "foot_contact": foot_contact,
    "body_contact": body_contact,
}
# The paper's, by action. Walks have no penetration: their ways keep clear of furniture.
PAPER: Mapping[str, Mapping[str, float]] = {
    "walk": {"goal": 1.0, "skating": 1e-3, "foot_contact": 1e-1},
    "sit": {"goal": 1.0, "skating": 3e-4, "smoothness": 1e-3, "penetration": 1e-1},
    "lie": {"goal": 1.0, "smoothness": 1e-3, "penetration": 3e-2},
}
# For ways that brush along furniture: walks see it, too.
CLUTTERED: Mapping[str, Mapping[str, float]] = {**PAPER, "walk": {**PAPER["walk"], "penetration": 1e-1}}


class RewardSet:
    """Weighted losses by action; motions of different actions may share a batch.

    Args:
        weights: Action -> loss -> weight.
        rewards: Further losses by name, in the same form as those of this file.

    Raises:
        InputError: When an action or a loss is unknown.
    """

    def __init__(
        self, weights: Mapping[str, Mapping[str, float]] = PAPER, rewards: Mapping[str, Reward] | None = None
    ) -> None:
        self.rewards = {**REWARDS, **(rewards or {})}
        for action, named in weights.items():
            if action not in ACTIONS:
                raise InputError(f"unknown action {action!r}: it must be one of {', '.join(ACTIONS)}")
            unknown = sorted(set(named) - set(self.rewards))
            if unknown:
                raise InputError(
                    f"unknown reward {unknown[0]!r}: it must be one of {', '.join(self.rewards)}"
                )
        self.weights = {action: dict(weights.get(action, {})) for action in ACTIONS}

    def __call__(self, joints: Tensor, markers: Tensor, setting: Setting) -> Tensor:
        """Return the loss of each motion, [B]: the goal plus F * 22 times the weighted means.

        Raises:
            NonFiniteError: Naming the reward that is NaN or infinite.
        """
        used = {ACTIONS[action] for action in setting.actions.tolist()}
        names = [name for name in self.rewards if any(self.weights[action].get(name) for action in used)]
        total, factor = joints.new_zeros(len(joints)), joints.shape[1] * joints.shape[2]
        for name in names:
            weight = joints.new_tensor([self.weights[action].get(name, 0.0) for action in ACTIONS])[
                setting.actions
            ]
            found = self.rewards[name](joints, markers, setting)
            if not bool(found.isfinite().all()):
                raise NonFiniteError(f"the reward {name} is not finite")
            total = total + weight * found * (1 if name == "goal" else factor)
        return total
