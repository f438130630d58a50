"""The command line as a user types it, in process, on an untrained policy."""

import json

import numpy as np
import pytest
import torch
from noiseworks.core.cli import run
from noiseworks.kits.policies import Episodes, NativePolicy, PolicyConfig
from noiseworks.rti_dp.cli import app
from PIL import Image


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policies") / "policy"
    NativePolicy(PolicyConfig(down_dims=(8, 16), kernel_size=3, step_embed_dim=8)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    from noiseworks.bench.testbeds.tabletop import simulation

    monkeypatch.setattr(simulation.TabletopBatch.__init__, "__kwdefaults__", SHORT)


SHORT = {"action_mode": "velocity", "disturb": False, "latency": 0, "max_steps": 4}


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def test_rollout_reports_films_and_records(policy, tmp_path, capsys):
    film, record = tmp_path / "film.webp", tmp_path / "episodes.npz"
    words = ["--steps", "3,1,0", "--discrete", "2:clip:10", "--tasks", "0,11", "--episodes", "2"]
    words += ["--initial-steps", "5", "--video", film, "--record", record, "--json"]
    status, printed, error = call(capsys, "rollout", "--policy", policy, *words)
    assert status == 0, error
    found = json.loads(printed)
    assert (found["episodes"], found["restarts"]) == (4, 0)
    assert set(found["success_by_task"]) == {"0", "11"}
    assert found["nfe_per_action"] == pytest.approx((5 + 3 * 3) / 4)
    with Image.open(film) as image:
        assert image.n_frames >= 2
        assert image.size == (2 * 192, 192)
    episodes = Episodes.load(record)
    assert len(episodes.ends) == 4
    assert np.isfinite(episodes.actions).all()
    status, printed, error = call(
        capsys,
        "suggest",
        "--policy",
        policy,
        "--data",
        record,
        "--nfe",
        "4",
        "--pairs",
        "8",
        "--discrete",
        "2:clip",
        "--json",
    )
    assert status == 0, error
    suggestion = json.loads(printed)
    assert suggestion["pairs"] == 8
    assert len(suggestion["residual"]) == 3
    assert suggestion["steps"][-1] == 0


def test_bench_shows_every_baseline(policy, capsys):
    words = ["--policy", policy, "--tasks", "0", "--episodes", "1", "--replans", "3", "--json"]
    status, printed, error = call(capsys, "bench", *words)
    assert status == 0, error
    found = json.loads(printed)
    assert list(found) == ["full", "ddim", "ensemble", "truncated", "rti"]
    assert [found[name]["calls_per_replan"] for name in ("full", "ddim", "truncated")] == [100, 10, 3]
    assert found["rti"]["times_faster"] > found["ddim"]["times_faster"] > 1


def test_scale_data_writes_a_scaled_copy(tmp_path, capsys):
    actions = np.array([[0.5, 1], [0.5, -1]], np.float32)
    Episodes(actions, actions, np.array([2]), np.zeros(1, np.int64)).save(tmp_path / "in.npz")
    words = ["scale-data", tmp_path / "in.npz", tmp_path / "out.npz", "--dims", "1", "--factor", "5"]
    status, _, error = call(capsys, *words)
    assert status == 0, error
    np.testing.assert_allclose(Episodes.load(tmp_path / "out.npz").actions[:, 1], [0.2, -0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("rollout --policy {empty}/gone", "gone"),
        ("rollout --policy {policy} --steps 1,2,0", "decrease"),
        ("rollout --policy {policy} --steps 3,x", "3,x"),
        ("rollout --policy {policy} --steps 100,0", "99"),
        ("rollout --policy {policy} --discrete 5:clip:10", "0 to 2"),
        ("rollout --policy {policy} --discrete 2:clip:0", "factor"),
        ("rollout --policy {policy} --env moon", "moon"),
        ("rollout --policy {policy} --tasks 12", "12"),
        ("rollout --policy {policy} --episodes 0", "episodes"),
        ("rollout --policy {policy} --latency 9", "latency"),
        ("rollout --policy {policy} --video film.gif", "film.gif"),
        ("rollout --policy {policy} --env pusht --latency 1", "latency"),
        ("suggest --policy {policy} --data gone.npz", "gone.npz"),
        ("suggest --policy {policy} --data testbed:pusht", "no demonstrations"),
        ("scale-data {empty}/gone.npz out.npz --dims 2", "gone.npz"),
        ("bench --policy {policy} --replans 0", "replans"),
    ],
)
def test_mistakes_are_refused_in_one_line(words, named, policy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, error = call(capsys, *words.format(policy=policy, empty=tmp_path).split())
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    assert named in error
    assert printed == ""
    assert not list(tmp_path.iterdir())
