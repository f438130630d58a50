"""Recorded behaviour of the mazes keeps the rules of transitions, its hashes, and goes through Minari."""

import time

import gymnasium
import numpy as np
import pytest
from noiseworks.bench.testbeds.maze import Layout, advance, fingerprint, load, make_layout, record, references
from noiseworks.bench.testbeds.maze.environment import ENV_ID
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.minari import from_minari, to_minari
from noiseworks.kits.rl.transitions import Transitions


@pytest.mark.parametrize("name", ["umaze-medium", "fork-routes", "medium-replay", "large-navigate"])
def test_named_data_sets_are_the_measured_ones(name):
    data = load(name)
    assert len(data) == 10_000
    assert data.about["layout"] == name.partition("-")[0]


def test_recorded_steps_follow_the_law_of_motion():
    data, walls = record("medium", "replay", 3000), make_layout("medium").walls
    reached = advance(walls, data.observations.astype(np.float64), data.actions.astype(np.float64))
    # Within float32's rounding of where a step began, except where that decides about a contact.
    assert np.quantile(np.abs(reached - data.next_observations).max(1), 0.99) < 1e-5
    same = np.flatnonzero(~(data.terminals | data.timeouts))
    np.testing.assert_array_equal(data.observations[same + 1], data.next_observations[same])
    assert (np.abs(data.actions) <= 1).all()


def test_episodes_end_where_they_should():
    data = record("umaze", "expert", 4000, reward="step_cost")
    lengths = data.ends - data.begins
    assert data.terminals[data.ends[:-1] - 1].all()
    np.testing.assert_array_equal(data.returns(), -(lengths - data.terminals[data.ends - 1]))
    data = record("umaze", "expert", 400)
    np.testing.assert_array_equal(data.ends, [150, 300, 400])
    assert not data.terminals.any()


def test_seeds_give_other_episodes():
    prints = {fingerprint(record("open", "medium", 500, seed)) for seed in (0, 0, 1)}
    assert len(prints) == 2


def test_recording_is_fast():
    begin = time.process_time()
    assert len(record("medium", "medium", 100_000)) == 100_000
    assert time.process_time() - begin < 4


def test_minari_keeps_every_number(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data, (random, expert) = (
        record("umaze", "medium", 700, reward="step_cost"),
        references("umaze", "step_cost"),
    )
    env = gymnasium.make(ENV_ID, layout="umaze", reward="step_cost")
    stored = to_minari(
        data, "maze/umaze-medium-v0", env, random_score=random, expert_score=expert, description="Blocks."
    )
    assert stored.total_steps == 700
    back = from_minari("maze/umaze-medium-v0")
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(array, back.arrays()[name], err_msg=name)
    with pytest.raises(InputError, match="minari download maze/none-v0"):
        from_minari("maze/none-v0")
    import minari

    assert minari.get_normalized_score(stored, np.array([expert]))[0] == pytest.approx(1.0)
    recovered = stored.recover_environment(eval_env=True)
    assert recovered.unwrapped.batch.layout.name == "umaze"
    assert recovered.unwrapped.batch.reward == "step_cost"


def test_references_of_fork_follow_the_limit():
    assert references("fork", "step_cost", 66) == (-66.0, pytest.approx(-55.54, abs=0.05))
    with pytest.raises(InputError, match="measure"):
        references("umaze", "sparse", 20)
    with pytest.raises(InputError, match="measure"):
        references("umaze", "dense")


def test_a_layout_of_ones_own_records(tmp_path):
    layout = Layout("corridor", ("#####", "#..G#", "#####"), 20)
    data = record(layout, "expert", 100)
    data.save(tmp_path / "data")
    back = Transitions.load(tmp_path / "data")
    assert back.about["layout"] == "corridor"
    assert fingerprint(back) == fingerprint(data)


@pytest.mark.parametrize("bad", [{"layout": "xl"}, {"behaviour": "lazy"}, {"steps": 0}, {"seed": -1}])
def test_bad_requests_are_refused(bad):
    with pytest.raises(InputError):
        record(**({"layout": "open", "behaviour": "random"} | bad))
    with pytest.raises(InputError):
        load("umaze-lazy")


def test_recipes_train_policies_that_act(tmp_path):
    from noiseworks.bench.testbeds.maze.recipes import RECIPES, roll_out

    recipe = RECIPES["maze-routes"]
    windows = recipe.prepare("noisy", 400)
    assert windows["action"].shape[1:] == (4, 2)
    assert windows["obs"].shape[1:] == (1, 4)
    module = recipe.build(windows)
    module.loss({name: tensor[:8] for name, tensor in windows.items()}).backward()
    recipe.publish(module, tmp_path / "model")
    report = roll_out(tmp_path / "model", "routes", 2, 500, 12)
    assert report.steps.tolist() == [12, 12]
