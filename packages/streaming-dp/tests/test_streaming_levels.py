"""Levels: the tables and call sequences of the paper's configurations, and the training draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core.errors import InputError
from noiseworks.streaming_dp.levels import REGIMES, ChunkLevels, check_weights
from noiseworks.streaming_dp.regimes import draw_regime, inference_timesteps, training_levels


def runs(spec, cycles):
    """Return the levels at the start of each cycle and the calls of each."""
    levels, starts, calls = spec.buffer, [], []
    for _ in range(cycles):
        starts.append(levels)
        calls.append(len(spec.cycle(levels)))
        levels = spec.shifted(spec.after(levels))
    return starts, calls


def test_two_chunks_with_a_rest():
    spec = ChunkLevels(100, 20, 2, 8)
    assert (spec.chunks, spec.rest) == (2, 3)
    assert spec.buffer == (49,) * 9 + (99,) * 11
    starts, calls = runs(spec, 6)
    assert calls == [50] * 6
    assert set(starts) == {spec.buffer}


def test_levels_that_the_chunks_do_not_divide():
    spec = ChunkLevels(16, 16, 2, 5)
    assert (spec.chunks, spec.rest) == (3, 0)
    assert spec.buffer == (4,) * 6 + (9,) * 5 + (15,) * 5
    starts, calls = runs(spec, 6)
    assert calls == [5, 5, 6, 5, 5, 6]
    assert starts[1] == (4,) * 6 + (10,) * 5 + (15,) * 5


def test_one_call_a_cycle():
    spec = ChunkLevels(15, 16, 2, 1)
    assert spec.buffer == (0, *range(15))
    assert spec.period == 1
    assert runs(spec, 20)[1] == [1] * 20


def test_a_hundred_levels_for_fifteen_chunks():
    spec = ChunkLevels(100, 16, 2, 1)
    assert spec.buffer == (5, 5, 12, 19, 25, 32, 39, 45, 52, 59, 65, 72, 79, 85, 92, 99)
    assert runs(spec, 6)[1] == [6, 7, 7, 6, 7, 7] == [spec.calls(i) for i in range(6)]
    assert spec.period == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 24), st.integers(1, 4), st.integers(1, 9))
def test_every_configuration_spends_n_over_h_calls_and_repeats(n, horizon, n_obs, n_action):
    chunks = (horizon - n_obs + 1) // n_action
    if horizon < n_obs - 1 + n_action or chunks > n:
        with pytest.raises(InputError):
            ChunkLevels(n, horizon, n_obs, n_action)
        return
    spec = ChunkLevels(n, horizon, n_obs, n_action)
    starts, calls = runs(spec, 2 * chunks)
    assert sum(calls) == 2 * n
    assert calls == [spec.calls(i) for i in range(2 * chunks)]
    assert starts[spec.period % (2 * chunks)] == spec.buffer or spec.period == 2 * chunks
    for levels in starts:
        assert levels[spec.first] in {n // chunks - 1, -(-n // chunks) - 1}
        assert levels[-1] == n - 1
        assert list(levels) == sorted(levels)


def test_a_cycle_that_is_cut_short_keeps_what_was_not_executed():
    spec = ChunkLevels(100, 17, 2, 4)
    end = spec.after(spec.buffer)
    assert end[spec.executed] == (-1,) * 4
    moved = spec.shifted(end, 1)
    assert moved[spec.executed] == (-1, -1, -1, end[5])
    assert moved[-1] == 99
    assert len(moved) == 17
    assert spec.shifted(end, 0) == end
    with pytest.raises(InputError, match="at most 4"):
        spec.shifted(end, 5)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ((100, 4, 2, 4), "at least n_obs_steps"),
        ((10, 16, 2, 1), "15 chunks"),
        ((100, 16, 2, 0), "n_action_steps"),
    ],
)
def test_impossible_windows_are_refused(sizes, word):
    with pytest.raises(InputError, match=word):
        ChunkLevels(*sizes)


def test_training_levels_of_each_regime():
    spec, generator = ChunkLevels(100, 16, 2, 1), torch.Generator().manual_seed(0)
    constant = training_levels(spec, "constant", 4000, generator)
    assert bool((constant == constant[:, :1]).all())
    assert constant.unique().tolist() == list(range(100))
    increasing = training_levels(spec, "increasing", 2, generator)
    assert increasing[1].tolist() == [int(99 * p / 15) for p in range(16)]
    random = training_levels(spec, "random", 400, generator)
    assert random.unique().tolist() == list(range(100))
    assert float((random[:, 0] - random[:, 1]).abs().float().mean()) > 20
    chunked = training_levels(spec, "chunk_wise", 400, generator)
    assert chunked[:, 0].unique().tolist() == list(range(6))
    assert bool((chunked - chunked[:, :1] == torch.tensor(spec.buffer) - spec.buffer[0]).all())
    with pytest.raises(InputError, match="regime"):
        training_levels(spec, "all", 1, None)


def test_one_regime_is_drawn_for_a_batch_with_its_weight():
    generator = torch.Generator().manual_seed(1)
    drawn = [draw_regime((0.2, 0, 0, 0.8), generator) for _ in range(500)]
    assert set(drawn) == {"constant", "chunk_wise"}
    assert 0.14 < drawn.count("constant") / 500 < 0.26


@pytest.mark.parametrize("weights", [(0.5, 0, 0, 0.4), (1, 0, 0), (1.5, -0.5, 0, 0)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(InputError):
        check_weights(weights)
    assert check_weights((0.25,) * len(REGIMES)) == (0.25,) * 4


def test_fewer_levels_reach_the_noisiest_timestep():
    assert inference_timesteps(100, 100).tolist() == list(range(100))
    steps = inference_timesteps(16, 100)
    assert steps[-1] == 99
    assert steps[:3].tolist() == [5, 11, 17]
    with pytest.raises(InputError):
        inference_timesteps(101, 100)
