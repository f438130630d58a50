"""The Gymnasium environment is a table of the batch, and keeps Gymnasium's rules."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.tabletop import TabletopBatch, instruction, render
from noiseworks.core.errors import InputError

pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env
from noiseworks.bench.testbeds.tabletop.environment import TabletopEnv


@pytest.mark.parametrize("mode", ["state", "image", "both"])
@pytest.mark.filterwarnings("ignore:.*render modes.*")
def test_gymnasium_accepts_the_environment(mode):
    check_env(TabletopEnv(obs_mode=mode, image_size=32, render_mode="rgb_array"))


@pytest.mark.parametrize("options", [{}, {"disturb": True, "latency": 1}])
def test_it_steps_like_a_table_of_the_batch(options):
    env, batch = TabletopEnv(4, obs_mode="both", **options), TabletopBatch(1, **options)
    obs, info = env.reset(seed=9)
    batch.reset(np.zeros(1, int), np.array([4]), np.array([9]))
    assert info == {"task": 4, "instruction": instruction(4), "is_success": False}
    rng = np.random.default_rng(0)
    for _ in range(20):
        np.testing.assert_array_equal(obs["state"], batch.state()[0].astype(np.float32))
        np.testing.assert_array_equal(obs["image"], render(batch.state(), 64)[0])
        np.testing.assert_array_equal(obs["goal"], np.eye(12)[4])
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        obs, reward, ended, cut, _ = env.step(action)
        result = batch.step(action[None])
        assert (reward, ended, cut) == (result.reward[0], result.terminated[0], result.truncated[0])


def test_a_reset_names_the_task_or_draws_one():
    env = TabletopEnv()
    assert env.reset(seed=1, options={"task": 7})[1]["task"] == 7
    assert len({env.reset(seed=seed)[1]["task"] for seed in range(30)}) > 6
    assert env.reset(seed=5)[1] == env.reset(seed=5)[1]


def test_without_a_seed_every_episode_is_another():
    env = TabletopEnv(0)
    starts = {env.reset(seed=None)[0]["state"].tobytes() for _ in range(5)}
    assert len(starts) == 5


@pytest.mark.parametrize("bad", [{"task": 12}, {"obs_mode": "depth"}, {"image_size": 50}, {"latency": 9}])
def test_bad_options_are_refused(bad):
    with pytest.raises(InputError):
        TabletopEnv(**bad)
