"""The Gymnasium mazes are mazes of the batch, and pass the checkers of Gymnasium and stable-baselines3."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from noiseworks.bench.testbeds.maze import MazeBatch, draw_paths, film, make_layout, render
from noiseworks.bench.testbeds.maze.environment import ENV_ID, MazeEnv, MazeVectorEnv
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.sb3 import GymnasiumVecEnv
from noiseworks.kits.rl.sources import write_paths
from noiseworks.kits.rl.stepping import ActionChunk, Stepper, collect, evaluate_returns
from PIL import Image


@pytest.mark.parametrize("options", [{}, {"view": True}, {"goal_conditioned": True, "reward": "step_cost"}])
def test_gymnasium_accepts_the_environment(options):
    check_env(MazeEnv("medium", render_mode="rgb_array", **options))


def test_stable_baselines3_accepts_the_environments():
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_checker import check_env as check_sb3
    from stable_baselines3.common.evaluation import evaluate_policy

    check_sb3(MazeEnv("umaze"))
    env = GymnasiumVecEnv(MazeVectorEnv(4, "open", max_steps=10))
    model = SAC("MlpPolicy", env, learning_starts=20, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(60)
    assert env.stepper.steps == 60
    assert model.replay_buffer.timeouts[9].all()
    assert model.replay_buffer.dones[9].all()
    returns, lengths = evaluate_policy(model, env, 4, return_episode_rewards=True, warn=False)
    assert lengths == [10] * 4
    assert all(0 <= value <= 10 for value in returns)


def test_a_vector_is_made_of_single_environments():
    options = {"layout": "umaze", "reward": "step_cost", "max_steps": 9}
    ours = gymnasium.make_vec(ENV_ID, num_envs=6, **options)
    assert isinstance(ours.unwrapped, MazeVectorEnv)
    theirs = SyncVectorEnv([lambda: MazeEnv(**options)] * 6, autoreset_mode=AutoresetMode.SAME_STEP)
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(40):
        push = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
        a, b = ours.step(push), theirs.step(push)
        for mine, other in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(mine, other)
        ended = np.flatnonzero(a[2] | a[3])
        ends += len(ended)
        for row in ended:
            np.testing.assert_array_equal(a[4]["final_obs"][row], b[4]["final_obs"][row])
    assert ends > 20


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_recording_is_the_same_in_every_autoreset_mode(mode):
    def policy(seen):
        return np.clip(seen[:, :2] - 2.5, -1, 1)

    options = {"layout": "open", "reward": "step_cost", "max_steps": 7}
    ours = collect(MazeVectorEnv(3, **options), policy, 60, seed=1)
    theirs = collect(SyncVectorEnv([lambda: MazeEnv(**options)] * 3, autoreset_mode=mode), policy, 60, seed=1)
    for name, array in ours.arrays().items():
        np.testing.assert_array_equal(array, theirs.arrays()[name], err_msg=name)
    assert (ours.ends - ours.begins).max() <= 7


def test_evaluation_counts_the_first_episodes_of_every_environment():
    env = MazeVectorEnv(4, "open", reward="step_cost", max_steps=12)
    report = evaluate_returns(env, lambda seen: np.zeros((4, 2)), 8, seed=0)
    np.testing.assert_array_equal(report.lengths, 12)
    np.testing.assert_array_equal(report.returns, -12.0)
    assert not report.success.any()
    assert report.scores(-12.0, 0.0).max() == 0
    assert report.steps == 96


def test_paths_lead_from_the_start_to_where_the_first_episode_ended(tmp_path):
    env = MazeVectorEnv(3, "open", reward="step_cost", max_steps=12)

    def right(seen):
        return np.tile([1.0, 0.0], (len(seen), 1))

    report = evaluate_returns(env, right, 6, seed=0, paths=2)
    assert [len(path) for path in report.paths] == (report.lengths.reshape(3, 2)[:2, 0] + 1).tolist()
    starts = env.reset(seed=0)[0]
    for path, start in zip(report.paths, starts, strict=False):
        np.testing.assert_array_equal(path[0], start)
        assert (np.diff(path[:, 0]) >= 0).all()  # an episode that began anew would jump back
    write_paths(tmp_path / "paths.png", "maze:open", report.paths, needs="dsrl")
    with Image.open(tmp_path / "paths.png") as picture:
        drawn = np.asarray(picture)
    assert not np.array_equal(drawn, draw_paths(make_layout("open"), []))
    assert evaluate_returns(env, right, 3).paths == ()


def test_chunks_stop_at_the_end_and_count_real_steps():
    options = {"layout": "fork", "reward": "step_cost", "max_steps": 10}
    single, many = ActionChunk(MazeEnv(**options), 4), MazeVectorEnv(3, chunk=4, **options)
    assert single.action_space == many.single_action_space
    stepper = Stepper(many)
    seen, (start, _) = stepper.reset(5), single.reset(seed=5)
    np.testing.assert_array_equal(seen[0], start)
    rng, lengths = np.random.default_rng(0), []
    for step in range(3):
        push = rng.uniform(-1, 1, (3, 4, 2))
        result = stepper.step(push)
        reached, reward, terminated, truncated, info = single.step(push[0])
        np.testing.assert_array_equal(result.reached[0], reached)
        assert (result.rewards[0], result.truncated[0], result.info["steps"][0]) == (
            reward,
            truncated,
            info["steps"],
        )
        assert truncated == (step == 2)
        assert not terminated
        lengths.append(info["steps"])
    assert lengths == [4, 4, 2]


def test_resets_take_a_start_and_a_goal():
    env = MazeEnv("umaze", goal_conditioned=True)
    seen, info = env.reset(seed=0, options={"start": (3, 3), "goal": (3, 1)})
    np.testing.assert_allclose(seen[:2], [3.5, 3.5], atol=0.1)
    np.testing.assert_array_equal(seen[4:], [1.5, 3.5])
    assert info == {"success": False}
    with pytest.raises(InputError, match="no free cell"):
        env.reset(options={"goal": (0, 0)})
    with pytest.raises(InputError, match="start and goal"):
        env.reset(options={"gaol": (3, 3)})


def test_pictures_show_body_goal_and_walls():
    layout = make_layout("umaze")
    centre = layout.centre(np.array([layout.cell_index((3, 1))]))
    picture = render(layout, centre, size=100)[0]
    assert picture[70, 30].tolist() == [206, 66, 56]
    assert picture[5, 5].tolist() == [70, 74, 84]
    assert picture[30, 30].tolist() == [120, 196, 140]
    assert picture[30, 50].tolist() == [240, 238, 232]
    frames = film(layout, [np.tile(centre, (3, 1)), np.tile(np.add(centre, (0.5, 0)), (5, 1))], size=50)
    assert len(frames) == 5
    assert frames[0].shape == (50, 100, 3)
    np.testing.assert_array_equal(frames[4][:, :50], frames[2][:, :50])
    paths = draw_paths(layout, [np.linspace((1.5, 3.5), (3.5, 3.5), 5)], size=100)
    assert (paths[70, 31:70] != picture[72, 31:70]).any(1).all()


def test_vector_steps_are_fast():
    import time

    env = MazeVectorEnv(1024, "medium")
    env.reset(seed=0)
    push = np.random.default_rng(0).uniform(-1, 1, (1024, 2))
    begin = time.process_time()
    for _ in range(100):
        env.step(push)
    assert 100 * 1024 / (time.process_time() - begin) > 100_000


def test_a_batch_and_an_environment_start_alike():
    env, batch = MazeEnv("large"), MazeBatch(1, "large")
    seen, _ = env.reset(seed=11)
    batch.reset(np.zeros(1, int), np.zeros(1, int), np.array([11]))
    np.testing.assert_array_equal(seen, batch.observe()["obs"][0])
