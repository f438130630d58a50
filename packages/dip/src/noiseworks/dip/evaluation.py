"""What motions are worth: goals reached, penetration, contact, joins (the paper's measures, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.dip.agent import Motion, MotionAgent, Waypoint
from noiseworks.dip.options import ACTIONS
from noiseworks.kits.motion import contact_score, penetration
from noiseworks.kits.motion.body import BodyModel
from noiseworks.kits.motion.measures import acceleration, goal_distance

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.motion import Cases

NEAR = 0.2  # metres from a goal that count as success
FASTEST = 4.0  # m/s of the pelvis: a body that jumps to its goal has not got there


@dataclass(frozen=True)
class Judged:
    """Figures of each motion, [N].

    Attributes:
        success: Whether the goal was reached, within 0.2 m and without the pelvis ever being faster than 4 m/s, 0 or 1.
        distance: Metres from the goal: any joint's, horizontally, at its nearest, for walks; the pelvis's at the end
            for sitting and lying.
        penetration: Centimetres summed over markers, mean over frames.
        deepest: Likewise, largest over frames.
        contact: Score of the feet.
        boundary: Acceleration where rounds join, m/s^2, mean over joints; NaN without a join.
        seconds: Of the motion until the goal.
    """

    success: np.ndarray
    distance: np.ndarray
    penetration: np.ndarray
    deepest: np.ndarray
    contact: np.ndarray
    boundary: np.ndarray
    seconds: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return the means; the joins' over motions that have some, and left out where none has."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: float(np.nanmean(values)) for name, values in found.items() if np.isfinite(values).any()
        }

    def best_of(self, samples: int) -> dict[str, float]:
        """Return means over cases of the best of their samples: the nearest to the goal of those that penetrate least.

        The released evaluation keeps the best of ten samples a case. The rule here: the smallest sum of the distance
        in metres and of a hundredth of the penetration in centimetres.

        Args:
            samples: Of each case, one after the other.
        """
        worth = (self.distance + 0.01 * self.penetration).reshape(-1, samples)
        rows = worth.argmin(1) + samples * np.arange(len(worth))
        return Judged(*(getattr(self, one.name)[rows] for one in fields(self))).summary()


def plans_of(cases: "Cases") -> list[list[Waypoint]]:
    """Return the plans of the testbed's cases."""
    return [
        [Waypoint(tuple(point), ACTIONS[action]) for point in way.tolist()]
        for way, action in zip(cases.waypoints, cases.actions.tolist(), strict=True)
    ]


def generators_of(seed: int, count: int) -> list[torch.Generator]:
    """Return one generator a motion, each of (seed, index) alone."""
    seeds = [int(np.random.SeedSequence((seed, index)).generate_state(1)[0]) for index in range(count)]
    return [torch.Generator().manual_seed(one) for one in seeds]


def carry_out(
    agent: MotionAgent, cases: "Cases", *, samples: int = 1, seed: int = 0, progress: object = None
) -> list[Motion]:
    """Return motions of cases, the samples of a case one after the other.

    Args:
        agent: Makes them.
        cases: What is to be done.
        samples: Motions a case.
        seed: Of speeds and noise.
        progress: As for `MotionAgent.run`.
    """
    rows = torch.arange(len(cases)).repeat_interleave(samples)
    plans = plans_of(cases)
    return agent.run(
        [plans[row] for row in rows.tolist()],
        cases.history[rows],
        cases.scene[rows],
        generators_of(seed, len(rows)),
        progress,
    )


def unblended(motions: Sequence[Motion], history: int) -> list[Motion]:
    """Return motions whose rounds simply follow each other: the same rounds, joined as without blending.

    A round begins from frames that blending leaves as they are, so the rounds are those that would have been drawn.

    Args:
        motions: Blended ones.
        history: Frames that rounds share.
    """
    found = []
    for motion in motions:
        frames = motion.frames[: motion.joins[0]]
        for part in motion.rounds:
            frames = torch.cat((frames, part[history:]))
        found.append(Motion(frames, motion.plan, motion.rounds, motion.joins, motion.done))
    return found


def judge(
    motions: Sequence[Motion], cases: "Cases", body: BodyModel, fps: float, *, samples: int = 1
) -> Judged:
    """Return what motions of cases are worth; walks are cut at the frame nearest to the goal.

    Args:
        motions: From `carry_out`.
        cases: What was to be done.
        body: The body.
        fps: Frames a second.
        samples: Motions a case.
    """
    rows = []
    for index, motion in enumerate(motions):
        case = index // samples
        scene, goal = cases.scene[case : case + 1], cases.goals[case : case + 1]
        joints, markers = body(motion.frames[None])
        end = joints.shape[1]
        if motion.plan[-1].action == "walk":
            near, frame = goal_distance(joints, goal[:, :2])
            distance, end = float(near), max(int(frame) + 1, motion.joins[0] + 3)
        else:
            distance = float((joints[0, -1, 0] - goal[0]).norm())
        first = motion.joins[0]
        deep, deepest = penetration(markers[:, first:end], scene)
        contact = contact_score(joints[:, max(first - 1, 0) : end], fps, scene.floor)
        pull = acceleration(joints, fps)[0]
        pelvis = joints[0, first - 1 : end, 0]
        jumps = float((pelvis[1:] - pelvis[:-1]).norm(dim=-1).max()) * fps > FASTEST
        later = [join for join in motion.joins[1:] if join < len(pull) + 1]
        # The two second differences that have frames of both rounds.
        boundary = [float(pull[join - 2 : join].mean()) for join in later]
        rows.append(
            (
                float(distance < NEAR and not jumps),
                distance,
                float(deep),
                float(deepest),
                float(contact),
                float(np.mean(boundary)) if boundary else np.nan,
                (end - first) / fps,
            )
        )
    return Judged(*np.array(rows).T)
