"""Meta-World as a batch of environments; skipped where the extra `[metaworld]` is not installed."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.metaworld import TASKS, MetaWorldBatch, demonstrations
from noiseworks.core.errors import InputError

ZERO = np.zeros(1, np.int64)


@pytest.fixture
def simulator():
    return pytest.importorskip("metaworld")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_envs": 0, "task": "reach-v3"}, "num_envs"),
        ({"num_envs": 1, "task": "reach-v3", "max_steps": 501}, "500"),
    ],
)
def test_bad_numbers_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        MetaWorldBatch(**options)


def test_an_unknown_task_is_refused(simulator):
    with pytest.raises(InputError, match="no task 'fly-v3'"):
        MetaWorldBatch(1, "fly-v3")


def test_episodes_depend_on_their_seed_alone(simulator):
    env = MetaWorldBatch(3, "reach-v3")
    env.reset(np.arange(3), np.zeros(3, np.int64), np.array([7, 8, 7]))
    first = env.observe()["obs"]
    assert (env.fps, env.instruction(0)) == (env.envs[0].metadata["render_fps"], "reach")
    np.testing.assert_array_equal(first[0], first[2])
    assert np.abs(first[0] - first[1]).max() > 1e-3
    for _ in range(3):
        env.step(np.tile([[0.5, -0.2, 0.1, 1.0]], (3, 1)))
    after = env.observe()["obs"]
    np.testing.assert_array_equal(after[0], after[2])
    other = MetaWorldBatch(1, "reach-v3")
    other.reset(ZERO, ZERO, np.array([7]))
    np.testing.assert_array_equal(other.observe()["obs"][0], first[0])


def test_rows_rest_after_their_end_and_bad_actions_are_refused(simulator):
    env = MetaWorldBatch(2, "reach-v3", max_steps=2)
    env.reset(ZERO, ZERO, np.array([1]))
    assert not env.step(np.zeros((2, 4))).truncated.any()
    np.testing.assert_array_equal(env.step(np.zeros((2, 4))).truncated, [True, False])
    seen = env.observe()["obs"]
    env.step(np.ones((2, 4)))
    np.testing.assert_array_equal(env.observe()["obs"], seen)
    with pytest.raises(InputError, match="shape"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(InputError, match="NaN"):
        env.step(np.full((2, 4), np.nan))


@pytest.mark.parametrize("task", TASKS)
def test_replayed_demonstrations_solve_their_task(simulator, task):
    episodes = demonstrations(task, 2, noise=0.0)
    assert episodes.obs.shape[1] == 39
    assert np.abs(episodes.actions).max() <= 1
    env = MetaWorldBatch(1, task)
    env.reset(ZERO, ZERO, np.array([1 << 24]))
    solved = [env.step(action[None]).terminated[0] for action in episodes.actions[: episodes.ends[0]]]
    assert any(solved)
