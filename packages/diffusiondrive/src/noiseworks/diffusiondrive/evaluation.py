"""What a planner's plans are worth: the PDM score, nearest mode, routes covered, diversity."""

from dataclasses import dataclass, replace
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
        scores: Of the best plan, [B, 1] each; progress along the route that the expert took.
        any_route: The score with progress along whichever admissible route gives most, [B]: where several routes are
            right and nothing says which, the one that the expert happened to take is no better than the others.
        ade: Smallest mean distance of any mode to the expert's plan, metres, [B].
        covered: Share of the admissible routes at whose end one of the top modes ends, [B].
        diverse: D of all modes, [B]; NaN where it was not asked for.
        calls: Network calls a plan.
    """

    scores: Scores
    any_route: np.ndarray
    ade: np.ndarray
    covered: np.ndarray
    diverse: np.ndarray
    calls: int

    def summary(self) -> dict[str, Any]:
        """Return the means for JSON."""
        found = self.scores.means() | {
            "any_route": float(self.any_route.mean()),
            "ade": float(self.ade.mean()),
        }
        spread = {"covered": float(self.covered.mean()), "diversity": float(np.nanmean(self.diverse))}
        return found | spread | {"calls": self.calls}


def judge(plans: Plans, labelled: "Labelled", *, diverse: int = 50) -> Judged:
    """Return what plans are worth on labelled scenes.

    Args:
        plans: Of all scenes.
        labelled: The scenes with the expert's plans.
        diverse: Scenes whose diversity is measured; it is slow.
    """
    poses = plans.poses.double().numpy()
    best = plans.best.double().numpy()
    scores = score_plans(best[:, None], labelled.scenes, labelled.reference)
    distance = np.linalg.norm(poses[..., :2] - labelled.plans[:, None, :, :2], axis=-1).mean(-1)
    top = np.argsort(-plans.scores.numpy(), axis=1, kind="stable")[:, :TOP]
    ends = np.take_along_axis(poses[:, :, -1, :2], top[..., None], 1)
    gap = np.linalg.norm(ends[:, :, None] - labelled.ends[:, None], axis=-1).min(axis=1)
    admissible = labelled.scenes.admissible
    covered = ((gap <= NEAR) & admissible).sum(axis=1) / admissible.sum(axis=1)
    spread = np.full(len(poses), np.nan)
    spread[:diverse] = [diversity(one) for one in poses[:diverse]]
    return Judged(scores, any_route(best, labelled), distance.min(axis=1), covered, spread, plans.calls)


def any_route(plans: np.ndarray, labelled: "Labelled") -> np.ndarray:
    """Return the largest PDM score of each plan over the routes that are admissible, [B].

    Only progress depends on the route; it is relative to the best proposal on the same one.

    Args:
        plans: One a scene, [B, 8, 3].
        labelled: The scenes.
    """
    found = np.zeros(len(plans))
    for route, there in enumerate(labelled.scenes.admissible.T):
        rows = np.flatnonzero(there)
        if len(rows):
            scenes = replace(labelled.scenes[rows], chosen=np.full(len(rows), route))
            score = score_plans(plans[rows, None], scenes, labelled.references[rows, route]).score[:, 0]
            found[rows] = np.maximum(found[rows], score)
    return found
