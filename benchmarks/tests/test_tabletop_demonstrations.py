"""Demonstrations: solved, two-sided, the same on every machine; their words, videos and figures."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.tabletop import (
    INSTRUCTIONS,
    TabletopBatch,
    datasets,
    demonstrations,
    instruction,
    jerk,
    load,
    mode_switches,
    render,
    text_embeddings,
    videos,
)
from noiseworks.bench.testbeds.tabletop.metrics import SPEED
from noiseworks.core.errors import ArtifactError, InputError


@pytest.fixture(scope="module")
def episodes():
    return load("tabletop-s")


def bows(episodes, tasks=range(6)):
    """Signed distance of each approach's middle from its straight line."""
    out = []
    for start, end, task in zip(episodes.starts, episodes.ends, episodes.tasks, strict=True):
        if task not in tasks:
            continue
        closing = np.flatnonzero(episodes.actions[start:end, 2] > 0)[0]
        path = episodes.obs[start : start + closing + 1, :2].astype(float)
        line = path[-1] - path[0]
        if np.hypot(*line) > 0.3:
            offset = (path - path[0]) @ np.array([-line[1], line[0]]) / np.hypot(*line)
            out.append(offset[np.abs(offset).argmax()])
    return np.array(out)


def test_the_small_set_has_its_stored_hash_and_size(episodes):
    assert np.bincount(episodes.tasks).tolist() == [50] * 12
    assert 12_000 < len(episodes.obs) < 18_000
    assert episodes.obs.dtype == episodes.actions.dtype == np.float32
    assert set(np.unique(episodes.actions[:, 2])) == {-1.0, 1.0}


def test_a_changed_set_is_noticed(episodes, monkeypatch):
    monkeypatch.setitem(datasets.HASHES, "tabletop-s", "0" * 64)
    with pytest.raises(ArtifactError, match="hash"):
        load("tabletop-s")
    before = datasets.fingerprint(episodes)
    changed = episodes.actions.copy()
    changed[7, 0] += 1e-3
    assert (
        datasets.fingerprint(type(episodes)(episodes.obs, changed, episodes.ends, episodes.tasks)) != before
    )


def test_replaying_the_actions_solves_each_task_on_its_last_step():
    few = demonstrations(2, seed=3)
    lengths = few.ends - few.starts
    env = TabletopBatch(len(lengths))
    attempts = 2 + 2
    first = datasets.FIRST_SEED + (3 << 20)
    # The first two of the four attempts, as no expert failed here.
    env.reset(env.rows, few.tasks, first + np.tile(np.arange(2), 12))
    assert attempts == len(datasets._roll_out(np.repeat(0, 4), first + np.arange(4), False)[2])
    solved_at = np.zeros(len(lengths), int)
    for step in range(lengths.max()):
        index = np.minimum(few.starts + step, few.ends - 1)
        live = step < lengths
        np.testing.assert_array_equal(env.observe()["obs"][live], few.obs[index[live]])
        done = env.step(few.actions[index]).terminated
        solved_at[live & done & (solved_at == 0)] = step + 1
    np.testing.assert_array_equal(solved_at, lengths)


def test_paths_bow_to_both_sides_unless_told_otherwise(episodes):
    both = bows(episodes)
    assert 0.4 < (both > 0).mean() < 0.6
    assert np.abs(both).mean() > 0.05
    one = bows(demonstrations(10, unimodal=True, tasks=(0, 3)))
    assert (one > 0).mean() > 0.95


def test_other_seeds_are_other_episodes():
    a, b = demonstrations(1, 0, tasks=(0,)), demonstrations(1, 1, tasks=(0,))
    assert not np.array_equal(a.obs[0], b.obs[0])


@pytest.mark.parametrize("bad", [{"episodes_per_task": 0}, {"episodes_per_task": 1, "seed": 1000}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError):
        demonstrations(**bad)


def test_an_unknown_set_is_refused():
    with pytest.raises(InputError, match="tabletop-m"):
        load("tabletop-l")


def test_videos_show_the_episodes_and_say_their_tasks():
    shown = videos(2, seed=1, tasks=(0, 8))
    episodes = demonstrations(2, 1, tasks=(0, 8))
    np.testing.assert_array_equal(shown.frames, render(episodes.obs[:, :21], 32))
    np.testing.assert_array_equal(shown.ends, episodes.ends)
    for text, task, wording in zip(shown.texts, shown.tasks, shown.paraphrases, strict=True):
        assert text == instruction(int(task), int(wording))


def test_every_task_has_five_wordings_that_differ():
    texts = [text for wordings in INSTRUCTIONS for text in wordings]
    assert len(texts) == len(set(texts)) == 60
    with pytest.raises(InputError, match="paraphrase"):
        instruction(0, 5)


def test_embeddings_are_close_within_a_task_and_far_between_tasks():
    table = text_embeddings()
    np.testing.assert_allclose(np.linalg.norm(table, axis=-1), 1, atol=1e-12)
    for own in table:
        np.testing.assert_allclose((own @ own.T)[~np.eye(5, dtype=bool)], 0.9, atol=1e-12)
    means = table.mean(1)
    cosines = np.corrcoef(means)[~np.eye(12, dtype=bool)]
    assert np.abs(cosines).max() < 0.7
    np.testing.assert_array_equal(table, text_embeddings())


def path_actions(offsets):
    """Positions from (0, 0) to (1, 0) with given offsets, and actions that close at the end."""
    x = np.linspace(0, 1, len(offsets))
    positions = np.stack((x, offsets), axis=1)
    actions = np.zeros((len(offsets), 3))
    actions[:, 2], actions[-1, 2] = -1.0, 1.0
    return positions, actions


@pytest.mark.parametrize(
    ("offsets", "switches"),
    [
        ([0, 0.1, 0.2, 0.1, 0], 0),
        ([0, 0.1, -0.1, -0.1, 0], 1),
        ([0, 0.1, 0.01, 0.1, 0], 0),
        ([0, 0.1, -0.02, 0.1, 0], 0),  # below the threshold: noise
        ([0, -0.1, 0.1, -0.1, 0], 2),
    ],
)
def test_mode_switches_count_changes_of_side(offsets, switches):
    positions, actions = path_actions(np.array(offsets, float))
    padded = np.full((1, 9, 2), np.nan), np.full((1, 9, 3), np.nan)
    padded[0][0, : len(offsets)], padded[1][0, : len(offsets)] = positions, actions
    assert mode_switches(*padded).tolist() == [switches]


def test_mode_switches_stop_at_the_first_closing():
    positions, actions = path_actions(np.array([0, 0.1, 0.1, 0.1, 0, -0.1, -0.2, 0.3]))
    positions[:5, 0] = np.linspace(0, 1, 5)
    actions[4, 2] = 1.0
    assert mode_switches(positions[None], actions[None]).tolist() == [0]


def test_jerk_is_the_mean_second_difference_of_the_velocity():
    actions = np.full((2, 6, 3), np.nan)
    actions[0, :, :2] = np.array([[0, 0], [0.5, 0], [0, 0], [0.5, 0], [0, 0], [0.5, 0]])
    actions[1, :4, :2] = np.linspace(0, 0.9, 4)[:, None]  # a constant acceleration has none
    np.testing.assert_allclose(jerk(actions), [SPEED, 0.0], atol=1e-12)
    with pytest.raises(ValueError, match="shape"):
        jerk(np.zeros((2, 6, 2)))
