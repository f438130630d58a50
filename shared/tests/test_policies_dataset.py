"""Roll-outs as LeRobot's datasets: what was seen and done, bit for bit, under one name or not at all."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import DiffusionPolicy, LinearNormalizer, evaluate, make_scheduler
from noiseworks.kits.policies.hosts.lerobot_dataset import check_dataset, rollouts
from noiseworks.kits.policies.options import Keep

TASKS, SEEDS = np.array([4, 2, 0, 3]), np.arange(4)


class Host:
    """Actions that are drawn: each one differs from every other in all of its bits."""

    horizon, n_obs_steps, n_action_steps, action_dim = 8, 1, 2, 3

    def __init__(self):
        self.scheduler, self.normalizer = make_scheduler(5), LinearNormalizer.identity(3)

    def encode(self, obs):
        return obs["obs"]

    def denoise(self, x, k, cond):
        return 0.1 * x


class Clocks:
    """Task t is solved at step t, else the limit is 6; shows time and seed, a picture of them, and depth."""

    fps = 5

    def __init__(self, n):
        self.num_envs = n
        self.time, self.tasks, self.seeds = (np.zeros(n, np.int64) for _ in range(3))

    def instruction(self, task):
        return f"wait for {task}"

    def reset(self, rows, tasks, seeds):
        self.time[rows], self.tasks[rows], self.seeds[rows] = 0, tasks, seeds

    def observe(self):
        values = np.stack((self.time, self.seeds, self.tasks), 1)
        picture = (values[:, :, None, None] * 10 + np.arange(20).reshape(5, 4)).astype(np.uint8)
        share = (picture / np.float32(255)).astype(np.float32)
        depth = values[:, :1, None, None] / np.float32(7) + np.zeros((1, 5, 4), np.float32)
        return {"obs": values / np.float32(3), "image": picture, "image_share": share, "depth": depth}

    def step(self, actions):
        self.time += 1
        done = (self.time >= self.tasks) & (self.tasks > 0)
        return SimpleNamespace(reward=self.time / 8, terminated=done, truncated=~done & (self.time >= 6))


def kept(path, n=3):
    env = Clocks(n)
    with rollouts(path, env, TASKS) as writer:
        return evaluate(DiffusionPolicy(Host(), num_envs=n), env, TASKS, SEEDS, record=True, watch=writer.add)


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_holds_every_step_as_it_was_in_the_order_of_the_list(tmp_path, monkeypatch):
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    report = kept(tmp_path / "found")
    assert [path.name for path in tmp_path.iterdir()] == ["found"]
    found = LeRobotDataset("found", root=tmp_path / "found")
    assert (found.num_episodes, found.fps, len(found)) == (4, 5, 4 + 2 + 6 + 3)
    frames = [found[i] for i in range(len(found))]
    numbers = np.array([int(frame["episode_index"]) for frame in frames])
    for number, (task, length) in enumerate(zip(TASKS, (4, 2, 6, 3), strict=True)):
        mine = [frames[i] for i in np.flatnonzero(numbers == number)]
        actions = torch.stack([frame["action"] for frame in mine])
        assert actions.dtype == torch.float32
        assert torch.equal(actions, torch.from_numpy(report.actions[number, :length]))
        states = torch.stack([frame["observation.state"] for frame in mine])
        assert torch.equal(states, torch.from_numpy(report.observations[number, :length]))
        for time, frame in enumerate(mine):
            assert frame["task"] == f"wait for {task}"
            assert float(frame["timestamp"]) == pytest.approx(time / 5)
            assert float(frame["next.reward"]) == (time + 1) / 8
            over = time + 1 == length
            assert (bool(frame["next.done"]), bool(frame["next.success"])) == (over, over and task > 0)
            value = np.array([time, number, task])[:, None, None] * 10 + np.arange(20).reshape(5, 4)
            for name in ("observation.image", "observation.image_share"):
                assert torch.equal((frame[name] * 255).round().int(), torch.from_numpy(value).int())
            assert float(frame["observation.depth"][5]) == np.float32(time) / np.float32(7)


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_stops_leaves_no_dataset_and_a_folder_that_stands_is_refused(tmp_path, monkeypatch):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    save, calls = LeRobotDataset.save_episode, []

    def stopping(self):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(LeRobotDataset, "save_episode", stopping)
        with pytest.raises(KeyboardInterrupt):
            kept(tmp_path / "found")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("kept")
    with pytest.raises(InputError, match="is not replaced"):
        Keep(dataset=tmp_path / "mine")
    with pytest.raises(InputError, match="is not replaced"):
        kept(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "note"]


def test_what_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"lacks datasets here: pip install .*lerobot\[dataset\]"):
        check_dataset(tmp_path / "found")
