"""Adaptive Caching Scheduler: at which denoising steps a block is computed, given how alike its outputs are.

Steps are counted in call order: k = 0 is the noisiest. A schedule is an increasing list that starts with 0; from
each of its steps on, the block's output is reused until the next one.
"""

from typing import get_args

import numpy as np
from noiseworks.bac.options import METRICS, Metric, Objective
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError


def segment_scores(similarity: np.ndarray) -> np.ndarray:
    """Return c(a, e) = sum of S[a, t] over t = a .. e, what one segment that reuses step a gains.

    Args:
        similarity: S, float64 [K, K].

    Returns:
        float64 [K, K]; entries with e < a are 0.
    """
    return np.cumsum(np.triu(similarity), axis=1)


def pairwise_schedule(similarity: np.ndarray, updates: int) -> list[int]:
    """Return the schedule with the largest sum of segment scores, by dynamic programming (section 3.2, authors' code).

    `D[1][i] = c(0, i)` and `D[m][i]` = max over j of `D[m - 1][j] + c(j + 1, i)`. Ties take the smallest j.

    Args:
        similarity: S, float64 [K, K], larger is more alike.
        updates: M, number of computed steps with step 0 among them.
    """
    steps = len(similarity)
    scores = segment_scores(similarity)
    best = scores[0].copy()
    before, last = np.arange(steps)[:, None], np.arange(steps)[None]
    choices = []
    for m in range(2, updates + 1):
        # Entry (j, i): the first m - 1 segments end at j and the last one runs from j + 1 to i.
        found = np.full((steps, steps), -np.inf)
        found[:-1] = best[:-1, None] + scores[1:]
        found[(before < m - 2) | (before >= last)] = -np.inf
        choices.append(found.argmax(0))
        best = found.max(0)
    schedule, end = [], steps - 1
    for choice in reversed(choices):
        end = int(choice[end])
        schedule.append(end + 1)
    return [0, *reversed(schedule)]


def adjacent_schedule(similarity: np.ndarray, updates: int) -> list[int]:
    """Return step 0 and the steps that differ most from the one before: the objective as the paper prints it.

    With s_k = S[k, k - 1] the printed objective is a constant minus the sum of s at the chosen steps, so no
    search is needed. Ties take the earliest step.

    Args:
        similarity: S, float64 [K, K], larger is more alike.
        updates: M, number of computed steps with step 0 among them.
    """
    adjacent = np.round(np.diagonal(similarity, 1), 12)  # so that rounding does not decide ties
    chosen = np.argsort(adjacent, kind="stable")[: updates - 1] + 1
    return [0, *sorted(chosen.tolist())]


def objective_value(similarity: np.ndarray, schedule: list[int]) -> float:
    """Return the pairwise objective of a schedule: the sum of its segments' scores."""
    scores = segment_scores(similarity)
    ends = [*(step - 1 for step in schedule[1:]), len(similarity) - 1]
    return float(sum(scores[start, end] for start, end in zip(schedule, ends, strict=True)))


def solve(
    similarity: np.ndarray, updates: int, *, objective: Objective = "pairwise", metric: Metric = "cosine"
) -> list[int]:
    """Return the steps at which a block is computed.

    Args:
        similarity: Similarities or distances of the block's outputs at all pairs of steps, [K, K].
        updates: M, number of computed steps with step 0 among them, 1 to K.
        objective: `pairwise` (the authors' code) or `adjacent` (the paper's formula).
        metric: Whether the matrix holds similarities (`cosine`) or distances (the others, made small).

    Raises:
        InputError: When the matrix is not square and finite or an argument is out of range.
    """
    check_choice("objective", objective, get_args(Objective))
    check_choice("metric", metric, METRICS)
    similarity = np.asarray(similarity, np.float64)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise InputError(f"a similarity matrix must be [K, K], got shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        raise InputError("the similarity matrix holds NaN or infinity; profile the policy again")
    check_number("updates", updates, low=1, high=len(similarity), integer=True)
    alike = similarity if metric == "cosine" else -similarity
    return (pairwise_schedule if objective == "pairwise" else adjacent_schedule)(alike, updates)
