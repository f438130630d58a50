"""Push-T as a batch of environments; skipped where the extra `[pusht]` is not installed."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.pusht import PushTBatch
from noiseworks.core.errors import InputError

ZERO = np.zeros(1, np.int64)


@pytest.fixture
def simulator():
    return pytest.importorskip("gym_pusht")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_envs": 0}, "num_envs"), ({"num_envs": 1, "observation": "sound"}, "sound")],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        PushTBatch(**options)


@pytest.mark.parametrize("disturb", [False, True])
def test_episodes_depend_on_their_seed_alone(simulator, disturb):
    batch, alone = PushTBatch(3, disturb=disturb), PushTBatch(1, disturb=disturb)
    batch.reset(np.arange(3), np.zeros(3, np.int64), np.array([7, 8, 7]))
    alone.reset(ZERO, ZERO, np.array([8]))
    for step in range(60):
        goal = np.array([[200.0 + step, 300.0]])
        batch.step(np.repeat(goal, 3, 0))
        alone.step(goal)
    seen = batch.observe()["obs"]
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(seen[1], alone.observe()["obs"][0])
    assert np.abs(seen[0] - seen[1]).max() > 1
    assert batch.fps == batch.envs[0].metadata["render_fps"]


def test_a_disturbed_t_jumps_and_stays_off_the_walls(simulator):
    calm, jumpy = PushTBatch(1), PushTBatch(1, disturb=True)
    moved = []
    for seed in range(3):
        for env in (calm, jumpy):
            env.reset(ZERO, ZERO, np.array([seed]))
        for _ in range(80):
            before = jumpy.observe()["obs"][0, 2:4]
            for env in (calm, jumpy):
                env.step(np.full((1, 2), 5.0))  # a corner, away from the T
            moved.append(np.abs(jumpy.observe()["obs"][0, 2:4] - before).max())
    jumps = np.array(moved) > 1
    assert 0 < jumps.mean() < 0.1
    assert max(moved) < 60


def test_the_pusher_follows_and_a_covered_outline_solves(simulator):
    env = PushTBatch(2, max_steps=3)
    env.reset(np.arange(2), np.zeros(2, np.int64), np.array([1, 2]))
    goal = env.observe()["obs"][:, :2] + 20
    for _ in range(2):
        env.step(goal)
    assert np.abs(env.observe()["obs"][:, :2] - goal).max() < 12
    # Put one T onto its outline.
    raw = env.envs[0]
    raw._set_state(np.array([5.0, 5.0, *raw.goal_pose]))
    raw.block.position, raw.block.angle = tuple(raw.goal_pose[:2]), float(raw.goal_pose[2])
    result = env.step(np.full((2, 2), 5.0))
    assert result.terminated.tolist() == [True, False]
    assert result.truncated.tolist() == [False, True]
    assert result.reward[0] == 1
    seen = env.observe()["obs"]
    env.step(np.full((2, 2), 500.0))
    np.testing.assert_array_equal(env.observe()["obs"], seen)
    with pytest.raises(InputError, match="shape"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(InputError, match="NaN"):
        env.step(np.full((2, 2), np.nan))


def test_observations_carry_lerobots_names(simulator):
    env = PushTBatch(1, "keypoints")
    env.reset(ZERO, ZERO, np.array([3]))
    seen = env.observe()
    np.testing.assert_array_equal(
        seen["obs"][0],
        np.concatenate([seen["observation.environment_state"][0], seen["observation.state"][0]]),
    )
    env = PushTBatch(1, "pixels")
    env.reset(ZERO, ZERO, np.array([3]))
    seen = env.observe()
    assert set(seen) == {"observation.image", "observation.state"}
    image = seen["observation.image"][0]
    assert image.shape == (3, 96, 96)
    assert image.min() >= 0
    assert image.max() == 1  # a white table
    assert image.min() < 0.8
