"""Transitions keep their rules, and their views hold what brute force finds."""

import numpy as np
import pytest
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.rl.scores import mean_interval, normalised_score
from noiseworks.kits.rl.transitions import Transitions, concatenate, from_d4rl
from safetensors.numpy import save_file


def recording(lengths=(5, 3, 7), terminal=(True, False, False), seed=0):
    """Episodes whose observation is (episode, time), so that a view shows where its rows come from."""
    rng, parts = np.random.default_rng(seed), []
    for episode, (length, ended) in enumerate(zip(lengths, terminal, strict=True)):
        time = np.arange(length + 1, dtype=np.float32)
        seen = np.stack((np.full(length + 1, episode, np.float32), time), 1)
        last = np.arange(length) == length - 1
        parts.append(
            (
                seen[:-1],
                rng.normal(size=(length, 2)),
                rng.normal(size=length),
                seen[1:],
                last & ended,
                last & (not ended),
            )
        )
    return Transitions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_episodes_and_returns():
    data = recording()
    np.testing.assert_array_equal(data.begins, [0, 5, 8])
    np.testing.assert_array_equal(data.ends, [5, 8, 15])
    np.testing.assert_allclose(
        data.returns(), [data.rewards[a:b].sum() for a, b in ((0, 5), (5, 8), (8, 15))], rtol=1e-6
    )
    to_go = [data.rewards[i : data.ends[data.ends > i][0]].sum() for i in range(15)]
    np.testing.assert_allclose(data.returns_to_go(), to_go, atol=1e-6)
    picked = data.episodes([2, 0])
    np.testing.assert_array_equal(picked.observations[:, 0], [2] * 7 + [0] * 5)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_windows_are_those_that_brute_force_finds(length):
    data = recording()
    ends = data.terminals | data.timeouts
    inside = [i for i in range(15) if i + length <= 15 and not ends[i : i + length - 1].any()]
    np.testing.assert_array_equal(data.windows(length), inside)
    np.testing.assert_array_equal(data.windows(length, stride=3), inside[::3])
    strict = [i for i in inside if not ends[i + length - 1]]
    np.testing.assert_array_equal(data.windows(length, starts="strict"), strict)
    kept = (
        set(inside[::4]) | (set(inside) & {0, 5, 8}) | {i for i in inside if data.terminals[i + length - 1]}
    )
    anchored = sorted(i for i in kept if not data.timeouts[i + length - 1])
    np.testing.assert_array_equal(data.windows(length, 4, "anchored"), anchored)


def test_chunks_sum_rewards_and_stop_at_ends():
    data = recording()
    chunks = data.chunked(3)
    np.testing.assert_array_equal(chunks.observations, [[0, 0], [0, 3], [1, 0], [2, 0], [2, 3], [2, 6]])
    np.testing.assert_array_equal(chunks.next_observations, [[0, 3], [0, 5], [1, 3], [2, 3], [2, 6], [2, 7]])
    np.testing.assert_array_equal(chunks.terminals, [False, True, False, False, False, False])
    np.testing.assert_array_equal(chunks.timeouts, [False, False, True, False, False, True])
    np.testing.assert_allclose(chunks.rewards[1], data.rewards[3:5].sum(), rtol=1e-6)
    np.testing.assert_array_equal(chunks.actions[1].reshape(3, 2), data.actions[[3, 4, 4]])
    for name, array in data.chunked(1).arrays().items():
        np.testing.assert_array_equal(array, data.arrays()[name])
    every = data.chunked(3, stride=1)
    assert len(every) == len(data)
    np.testing.assert_allclose(every.rewards[1], data.rewards[1:4].sum(), rtol=1e-6)
    np.testing.assert_array_equal(every.next_observations[[1, 4]], [[0, 4], [0, 5]])
    np.testing.assert_array_equal(np.flatnonzero(every.terminals), [2, 3, 4])


def test_d4rl_without_next_observations_drops_what_timed_out():
    data = recording()
    raw = {
        name: data.arrays()[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts")
    }
    found = from_d4rl(raw)
    rows = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    np.testing.assert_array_equal(found.observations, data.observations[rows])
    np.testing.assert_array_equal(found.ends, [5, 7, 13])
    inner = ~found.terminals
    np.testing.assert_array_equal(found.next_observations[inner], data.next_observations[rows][inner])
    np.testing.assert_array_equal(found.terminals, data.terminals[rows])
    np.testing.assert_array_equal(np.flatnonzero(found.timeouts), [6, 12])
    whole = from_d4rl(data.arrays())
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(whole.arrays()[name], array)
    with pytest.raises(InputError, match="rewards"):
        from_d4rl({"observations": data.observations, "actions": data.actions, "terminals": data.terminals})


def test_transitions_are_saved_and_damage_is_seen(tmp_path):
    data = concatenate([recording(), recording(seed=1)], {"env": "x"})
    data.save(tmp_path / "a")
    back = Transitions.load(tmp_path / "a")
    assert back.about == {"env": "x"}
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(array, back.arrays()[name])
    weights = tmp_path / "a/model.safetensors"
    save_file({k: v for k, v in data.arrays().items() if k not in ("terminals", "rewards")}, weights)
    with pytest.raises(
        ArtifactError, match="a lacks rewards, terminals: transitions are observations, actions"
    ):
        Transitions.load(tmp_path / "a")
    save_file(data.arrays() | {"timeouts": data.terminals}, weights)
    with pytest.raises(
        ArtifactError, match="a holds no transitions: a step may not both terminate and time out"
    ):
        Transitions.load(tmp_path / "a")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="readable"):
        Transitions.load(tmp_path / "a")
    (tmp_path / "a/config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="object"):
        Transitions.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": np.zeros(3)}, "same length"),
        ({"rewards": np.full(15, np.nan)}, "NaN"),
        ({"timeouts": np.ones(15, bool)}, "both"),
        ({"timeouts": np.zeros(15, bool)}, "last step"),
        ({"next_observations": np.zeros((15, 3))}, "shape"),
        ({"actions": np.zeros(15)}, "actions"),
    ],
)
def test_broken_rules_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        Transitions(**(recording().arrays() | change))


def test_views_refuse_what_does_not_fit():
    data = recording()
    with pytest.raises(InputError, match="longest episode has 7"):
        data.windows(8)
    with pytest.raises(InputError, match="chunk"):
        data.chunked(0)
    with pytest.raises(InputError, match="same observations"):
        concatenate([data, data.chunked(2)])


def test_scores():
    np.testing.assert_allclose(normalised_score([10.0, 20.0, 40.0], 10, 30), [0, 50, 150])
    with pytest.raises(InputError, match="above"):
        normalised_score([1.0], 3, 3)
    mean, low, high = mean_interval(np.random.default_rng(0).normal(5, 1, 400))
    assert low < mean < high
    assert (high - low) == pytest.approx(2 * 1.96 / 20, rel=0.2)
