"""What a planner's plans are worth: the PDM score, nearest mode, routes covered, diversity."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from noiseworks.diffusiondrive.plans import Plans, diversity
from noiseworks.kits.driving import Scores, score_plans

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled

NEAR, TOP = 2.0, 3  # metres; modes that may cover a route


@dataclass(frozen=True)
class Judged:
    """Figures of each scene.

    Attributes:
        scores: Of the best plan, [B, 1] each.
        ade: Smallest mean distance of any mode to the expert's plan, metres, [B].
        covered: Share of the admissible routes at whose end one of the top modes ends, [B].
        diverse: D of all modes, [B]; NaN where it was not asked for.
        calls: Network calls a plan.
    """

    scores: Scores
    ade: np.ndarray
    covered: np.ndarray
    diverse: np.ndarray
    calls: int

    def summary(self) -> dict[str, Any]:
        """Return the means for JSON."""
        found = self.scores.means() | {"ade": float(self.ade.mean()), "covered": float(self.covered.mean())}
        return found | {"diversity": float(np.nanmean(self.diverse)), "calls": self.calls}


def judge(plans: Plans, labelled: "Labelled", *, diverse: int = 50) -> Judged:
    """Return what plans are worth on labelled scenes.

    Args:
        plans: Of all scenes.
        labelled: The scenes with the expert's plans.
        diverse: Scenes whose diversity is measured; it is slow.
    """
    poses = plans.poses.double().numpy()
    scores = score_plans(plans.best.double().numpy()[:, None], labelled.scenes, labelled.reference)
    distance = np.linalg.norm(poses[..., :2] - labelled.plans[:, None, :, :2], axis=-1).mean(-1)
    top = np.argsort(-plans.scores.numpy(), axis=1, kind="stable")[:, :TOP]
    ends = np.take_along_axis(poses[:, :, -1, :2], top[..., None], 1)
    gap = np.linalg.norm(ends[:, :, None] - labelled.ends[:, None], axis=-1).min(axis=1)
    admissible = labelled.scenes.admissible
    covered = ((gap <= NEAR) & admissible).sum(axis=1) / admissible.sum(axis=1)
    spread = np.full(len(poses), np.nan)
    spread[:diverse] = [diversity(one) for one in poses[:diverse]]
    return Judged(scores, distance.min(axis=1), covered, spread, plans.calls)
