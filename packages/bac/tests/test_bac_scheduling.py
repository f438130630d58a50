import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.bac.bubbling import bubble_union, most_volatile
from noiseworks.bac.options import METRICS
from noiseworks.bac.scheduling import objective_value, solve
from noiseworks.core.errors import InputError


def decaying(steps: int, length: float) -> np.ndarray:
    k = np.arange(steps)
    return np.exp(-np.abs(k[:, None] - k) / length)


ANGLES = np.array([0, 0, 0, 0, 0, 0.4, 0.8, 1.2, 1.6, 2.0])
TURNING = np.cos(ANGLES[:, None] - ANGLES)


def brute_force(similarity: np.ndarray, updates: int) -> float:
    steps = len(similarity)
    best = -np.inf
    for rest in itertools.combinations(range(1, steps), updates - 1):
        starts = [0, *rest]
        ends = [*rest, steps]
        total = sum(similarity[a, t] for a, e in zip(starts, ends, strict=True) for t in range(a, e))
        best = max(best, total)
    return best


@pytest.mark.parametrize(
    ("updates", "schedule", "value"),
    [
        (1, [0], None),
        (2, [0, 5], 5.7228500178),
        (3, [0, 3, 6], 7.0577247300),
        (4, [0, 2, 4, 7], 7.8929594804),
        (5, [0, 2, 4, 6, 8], None),
    ],
)
def test_schedules_of_exponentially_decaying_similarity(updates, schedule, value):
    similarity = decaying(10, 3)
    assert solve(similarity, updates) == schedule
    if value is not None:
        assert objective_value(similarity, schedule) == pytest.approx(value, abs=1e-10)


def test_ten_updates_of_a_hundred_even_steps_are_even():
    assert solve(decaying(100, 20), 10) == list(range(0, 100, 10))


@pytest.mark.parametrize(
    ("updates", "schedule", "value"),
    [
        (2, [0, 7], 9.2355354067),
        (3, [0, 6, 8], 9.7631829820),
        (4, [0, 5, 6, 8], 9.8421219880),
        (5, [0, 5, 6, 7, 8], None),
    ],
)
def test_pairwise_schedules_of_a_late_turn(updates, schedule, value):
    assert solve(TURNING, updates) == schedule
    if value is not None:
        assert objective_value(TURNING, schedule) == pytest.approx(value, abs=1e-10)


def test_the_printed_objective_takes_the_largest_changes_and_differs_from_the_pairwise_one():
    assert np.diagonal(TURNING, 1)[4:] == pytest.approx(0.9210609940, abs=1e-10)
    assert solve(TURNING, 4, objective="adjacent") == [0, 5, 6, 7]
    assert solve(TURNING, 4) != [0, 5, 6, 7]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 10**6))
def test_dynamic_programming_equals_brute_force(steps, updates, seed):
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(-1, 1, (steps, steps))
    similarity = (drawn + drawn.T) / 2
    updates = min(updates, steps)
    schedule = solve(similarity, updates)
    assert len(schedule) == updates
    assert schedule[0] == 0
    assert schedule == sorted(set(schedule))
    assert objective_value(similarity, schedule) == pytest.approx(brute_force(similarity, updates), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_more_updates_never_lower_the_objective_of_cosine_similarities(seed):
    features = np.random.default_rng(seed).normal(size=(12, 3)).cumsum(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    values = [objective_value(similarity, solve(similarity, m)) for m in range(1, 13)]
    assert (np.diff(values) > -1e-12).all()
    assert values[-1] == pytest.approx(12)


def test_ties_give_the_smallest_steps_and_all_updates_give_all_steps():
    assert solve(np.ones((6, 6)), 3) == [0, 1, 2]
    assert solve(np.ones((6, 6)), 3, objective="adjacent") == [0, 1, 2]
    assert solve(decaying(7, 2), 7) == list(range(7))


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "cosine"])
def test_distances_are_made_small(metric):
    distance = 1 - decaying(10, 3)
    assert solve(distance, 3, metric=metric) == [0, 3, 6]


@pytest.mark.parametrize(
    ("matrix", "arguments", "words"),
    [
        (np.ones((4, 4)), {"updates": 0}, "updates"),
        (np.ones((4, 4)), {"updates": 5}, "updates"),
        (np.ones((4, 3)), {"updates": 2}, "shape"),
        (np.full((4, 4), np.nan), {"updates": 2}, "NaN"),
        (np.ones((4, 4)), {"updates": 2, "metric": "dot"}, "metric"),
        (np.ones((4, 4)), {"updates": 2, "objective": "greedy"}, "objective"),
    ],
)
def test_bad_schedules_are_refused(matrix, arguments, words):
    with pytest.raises(InputError, match=words):
        solve(matrix, **arguments)


KINDS, LAYERS = ["sa", "ff", "sa", "ff"], [0, 0, 1, 1]
SCHEDULES = [[0, 5], [0, 4], [0, 3], [0, 6]]


@pytest.mark.parametrize(
    ("selected", "changed"), [([0], {0: [0, 4, 5, 6]}), ([2], {2: [0, 3, 6]}), ([1], {1: [0, 4, 6]})]
)
def test_bubbling_joins_the_feed_forward_blocks_from_the_own_layer_on(selected, changed):
    expected = [changed.get(i, schedule) for i, schedule in enumerate(SCHEDULES)]
    assert bubble_union(SCHEDULES, KINDS, LAYERS, selected) == expected


def test_bubbling_does_not_depend_on_the_order_of_the_selected_blocks():
    results = [bubble_union(SCHEDULES, KINDS, LAYERS, order) for order in itertools.permutations(range(4))]
    assert all(result == results[0] for result in results)


def test_the_most_volatile_blocks_come_first_and_may_be_feed_forward_only():
    assert most_volatile([1.0, 3.0, 2.0, 3.0], KINDS, 3) == [1, 3, 2]
    assert most_volatile([9.0, 3.0, 8.0, 4.0], KINDS, 2, "ffn") == [3, 1]
    with pytest.raises(InputError, match="bubble"):
        most_volatile([9.0, 3.0, 8.0, 4.0], KINDS, 3, "ffn")
