"""The command line as a user types it, in process, and the claim's arms on an untrained host."""

import json

import numpy as np
import pytest
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.core.cli import run
from noiseworks.kits.policies import Episodes, NativePolicy, PolicyConfig
from noiseworks.streaming_dp import StreamingHost, claim, convert, save_difference
from noiseworks.streaming_dp.cli import app
from PIL import Image

SMALL = PolicyConfig(down_dims=(8, 16), kernel_size=3, step_embed_dim=8, num_train_timesteps=20)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = NativePolicy(SMALL)
    host.save_pretrained(tmp_path_factory.mktemp("models") / "ordinary")
    return host


@pytest.fixture(scope="module")
def folder(ordinary, tmp_path_factory):
    path = tmp_path_factory.mktemp("both")
    ordinary.save_pretrained(path / "ordinary")
    convert(ordinary, n_action_steps=1).save_pretrained(path / "streaming")
    return path


def typed(capsys, *words):
    with pytest.raises(SystemExit) as done:
        run(app, [*map(str, words), "--json"])
    out = capsys.readouterr()
    return done.value.code or 0, out.out, out.err


def answer(capsys, *words):
    code, out, err = typed(capsys, *words)
    assert code == 0, err
    return json.loads(out)


def test_levels_are_shown(capsys):
    found = answer(capsys, "levels", "--horizon", 16, "--n-obs", 2, "--n-action", 1)
    assert found["calls"] == [6, 7, 7]
    assert found["levels"][-1] == 99
    assert found["calls_per_cycle"] == pytest.approx(100 / 15)


def test_a_policy_is_converted_trained_and_run(capsys, folder, tmp_path):
    made = answer(capsys, "convert", "--policy", folder / "ordinary", "--out", tmp_path / "converted")
    assert StreamingHost.from_pretrained(made["out"]).n_action_steps == 1
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(60, 33)), rng.normal(size=(60, 3))
    Episodes(*(a.astype(np.float32) for a in arrays), np.array([30, 60]), np.zeros(2, np.int64)).save(
        tmp_path / "data.npz"
    )
    words = ["--data", tmp_path / "data.npz", "--max-steps", 2, "--batch-size", 8, "--device", "cpu"]
    trained = answer(
        capsys, "train", "--policy", tmp_path / "converted", "--out", tmp_path / "run", "--half", *words
    )
    assert trained["windows"] == 60
    video = tmp_path / "stream.webp"
    words = ["--policy", trained["model"], "--tasks", 8, "--tasks", 10, "--episodes", 1, "--video", video]
    found = answer(capsys, "rollout", *words)
    assert found["episodes"] == 2
    assert found["nfe_per_replan"] == pytest.approx(20 / 15, abs=0.05)
    with Image.open(video) as image:
        assert image.format == "WEBP"
        assert image.n_frames > 2


def test_arms_are_compared(capsys, folder):
    words = ["--policy", folder / "streaming", "--host", folder / "ordinary", "--tasks", 8]
    found = answer(capsys, "bench", *words, "--episodes", 1, "--replans", 2)
    assert set(found) == {"dp", "ddim", "sdp"}
    assert found["dp"]["replan"]["nfe"] == 20
    assert found["sdp"]["replan"]["nfe"] < 2.1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["levels", "--horizon", 3, "--n-action", 4], "horizon"),
        (["levels", "--num-levels", 5], "15 chunks"),
        (["convert", "--policy", "gone", "--out", "out"], "gone"),
        (["rollout", "--policy", "{both}/ordinary"], "streaming-dp/policy"),
        (["rollout", "--policy", "{both}/streaming", "--video", "film.gif"], "webp"),
        (["rollout", "--policy", "{both}/streaming", "--tasks", 12], "12"),
        (["rollout", "--policy", "{both}/streaming", "--env", "moon"], "moon"),
        (["train", "--out", "out", "--data", "testbed:pusht"], "no demonstrations"),
        (["train", "--out", "out", "--weights", "0.5", "0", "0", "0"], "sum to 1"),
        (["train", "--out", "out", "--data", "gone.npz"], "gone.npz"),
        (["bench", "--policy", "{both}/streaming", "--arms", "cp"], "cp"),
    ],
)
def test_mistakes_are_refused_in_one_line(words, named, capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(capsys, *(str(word).format(both=folder) for word in words))
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []


def test_the_claims_arms_measure_the_same_episodes(ordinary, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "SHIPPED", tmp_path / "shipped")
    for arm in claim.REGIMES:
        save_difference(
            tmp_path / "shipped" / arm, StreamingHost.from_pretrained(folder / "streaming"), ordinary
        )
    settings = claim.CLAIM.scales["smoke"].settings
    context = Context("smoke", settings, str(folder / "ordinary"), "cpu", tmp_path, lambda *step: None)
    found = {arm.name: claim.run_arm(arm.name, 5, context) for arm in claim.ARMS}
    assert set(claim.CLAIM.columns) == {name for one in found.values() for name in one.metrics}
    assert found["dp"].metrics["calls"] == 20
    assert found["sdp"].metrics["calls"] == pytest.approx(20 / 15, abs=0.05)
    assert len({len(one.metrics["success_few"]) for one in found.values()}) == 1
    assert {arm for arm, one in found.items() if "success" in one.metrics} == {"dp", "ddim", "sdp"}
    untrained = {"dp": [found["dp"]]}
    assert "solves only" in claim.precondition(untrained)
    assert claim.precondition({"dp": [Measurement({"success": [1.0, 0.0]})]}) is None
