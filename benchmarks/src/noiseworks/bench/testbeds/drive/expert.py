"""The expert: on every route proposals of offset and speed, driven and scored; one good route is taken at random."""

from dataclasses import dataclass, replace

import numpy as np
from noiseworks.bench.testbeds.drive.generating import ROUTES, Drawn, draw
from noiseworks.core.errors import InputError
from noiseworks.kits.driving.proposals import propose
from noiseworks.kits.driving.scenes import Scenes, join
from noiseworks.kits.driving.scoring import score_plans
from noiseworks.kits.driving.tracking import SPACING

GOOD = 0.8  # a route on which no proposal reaches this score is not admissible
ATTEMPTS = 20
BATCH = 64


@dataclass(frozen=True)
class Labelled:
    """Scenes with the expert's plans.

    Attributes:
        scenes: Admissible are the routes that can be driven well; chosen is the one that the expert took.
        plans: The expert's poses each half second, [B, 8, 3].
        ends: Where the expert would have ended on each route, [B, R, 2].
        references: Metres of progress of the best proposal on each route, [B, R].
        scores: The expert's score, [B].
        templates: Index in `TEMPLATES`, int [B].
    """

    scenes: Scenes
    plans: np.ndarray
    ends: np.ndarray
    references: np.ndarray
    scores: np.ndarray
    templates: np.ndarray

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def reference(self) -> np.ndarray:
        """Metres of progress of the best proposal on the chosen route, [B]."""
        return self.references[np.arange(len(self)), self.scenes.chosen]

    def __getitem__(self, index: slice | np.ndarray) -> "Labelled":
        return Labelled(
            self.scenes[index],
            self.plans[index],
            self.ends[index],
            self.references[index],
            self.scores[index],
            self.templates[index],
        )


def of_scenes(scenes: Scenes, plans: np.ndarray) -> Labelled:
    """Return scenes of another origin with the plans that were driven in them.

    What is possible on each route is found as for the testbed's own scenes; which are admissible, and which one was
    taken, is the scenes' own.

    Args:
        scenes: The scenes.
        plans: [B, 8, 3].

    Raises:
        InputError: When the plans are of another shape or not finite.
    """
    count = len(scenes)
    found, _ = drive(Drawn(scenes, np.zeros(count, np.int64), np.zeros(count)))
    made = replace(found, scenes=scenes, plans=np.asarray(plans, np.float64))
    return replace(made, scores=score_plans(made.plans[:, None], scenes, made.reference).score[:, 0])


def label(seed: int, count: int, *, start: int = 0, progress: object = None) -> Labelled:
    """Return scenes `start` to `start + count` of a seed with the expert's plans.

    A scene in which no route can be driven well is drawn anew; what it becomes depends on (seed, index) alone.

    Args:
        seed: Of the set.
        count: Number of scenes.
        start: Index of the first one.
        progress: Called with (scenes done, in all), or None.

    Raises:
        InputError: When a scene cannot be made drivable.
    """
    left, parts, done = np.arange(start, start + count), [], 0
    for attempt in range(ATTEMPTS):
        undrivable = []
        for first in range(0, len(left), BATCH):
            indices = left[first : first + BATCH]
            found, good = drive(draw(seed, indices, attempt))
            parts.append((indices[good], found[good]))
            undrivable.append(indices[~good])
            done += int(good.sum())
            if callable(progress):
                progress(done, count)
        left = np.concatenate(undrivable)
        if not len(left):
            break
    else:
        raise InputError(f"no route can be driven well in scene {left[0]} of seed {seed}")
    order = np.argsort(np.concatenate([where for where, _ in parts]))
    return joined([part for _, part in parts])[order]


def drive(drawn: Drawn) -> tuple[Labelled, np.ndarray]:
    """Drive every route of scenes; return the labels and which scenes have a route that can be driven well."""
    scenes, batch = drawn.scenes, len(drawn.scenes)
    rows = np.arange(batch)
    best = np.full((batch, ROUTES), -1.0)
    plans, far = np.zeros((batch, ROUTES, 8, 3)), np.zeros((batch, ROUTES))
    # All routes of all scenes at once: a row each.
    here, route = np.nonzero(scenes.admissible)
    part = replace(scenes[here], chosen=route)
    proposals = propose(part, part.route)[:, :, SPACING::SPACING]
    found = score_plans(proposals, part)
    pick, mine = found.score.argmax(axis=1), np.arange(len(here))
    best[here, route], plans[here, route] = found.score[mine, pick], proposals[mine, pick]
    far[here, route] = found.raw_progress.max(axis=1)
    admissible = best >= GOOD
    count = admissible.sum(axis=1)
    # The k-th admissible route, k uniform.
    rank = np.minimum((drawn.picks * count).astype(np.int64), np.maximum(count - 1, 0))
    chosen = (np.cumsum(admissible, axis=1) == rank[:, None] + 1).argmax(axis=1)
    labelled = Labelled(
        replace(scenes, admissible=admissible, chosen=chosen),
        plans[rows, chosen],
        plans[:, :, -1, :2],
        far,
        best[rows, chosen],
        drawn.templates,
    )
    return labelled, count > 0


def joined(parts: list[Labelled]) -> Labelled:
    """Return several labelled batches as one."""
    names = ("plans", "ends", "references", "scores", "templates")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Labelled(scenes=join([part.scenes for part in parts]), **arrays)
