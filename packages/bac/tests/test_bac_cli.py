"""The command line as a user types it, in process, on a small untrained policy."""

import json

import numpy as np
import pytest
import torch
from noiseworks.bac import commands
from noiseworks.bac.cli import app
from noiseworks.bac.data import load_observations
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import FeatureProfile, profile
from noiseworks.core.cli import run
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from PIL import Image

K = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    config = PolicyConfig(network="transformer", n_layer=2, n_head=2, n_emb=16, num_train_timesteps=K)
    NativePolicy(config).eval().save_pretrained(folder / "policy")
    NativePolicy(PolicyConfig(down_dims=(8, 16), num_train_timesteps=K)).save_pretrained(folder / "unet")
    rng = np.random.default_rng(0)
    np.savez(folder / "obs.npz", obs=rng.normal(size=(4, 2, 33)).astype(np.float32))
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def made(home):
    """Return the folders of a profile and of a plan."""
    policy = NativePolicy.from_pretrained(home / "policy")
    obs = load_observations(home / "obs.npz", policy, 2, 0)
    found = profile(policy, obs, metrics=("cosine", "l1"), generator=torch.Generator().manual_seed(0))
    found.save_pretrained(home / "profile")
    make_plan(found, updates=3, bubble=1).save_pretrained(home / "plan")
    return home / "profile", home / "plan"


def test_profile_goes_on_where_it_was_stopped_and_with_nothing_else(home, tmp_path, capsys, monkeypatch):
    words = [
        "profile",
        "--model",
        home / "policy",
        "--data",
        home / "obs.npz",
        "--observations",
        "3",
        "--json",
    ]
    status, printed, error = call(capsys, *words, "--out", tmp_path / "all")
    assert (status, json.loads(printed)["observations"]) == (0, 3), error
    whole, calls = commands.profile, []

    def stopping(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(commands, "profile", stopping)
    out = tmp_path / "stopped"
    assert call(capsys, *words, "--out", out)[0] == 130
    assert FeatureProfile.from_pretrained(out).observations == 1
    fewer = ["2" if word == "3" else word for word in words]
    for other in ([*words, "--solver", "ddim"], [*words, "--seed", "12"], [*words, "--metrics", "l1"], fewer):
        status, _, error = call(capsys, *other, "--out", out)
        assert (status, error.count("\n")) == (2, 1)
        assert "made otherwise" in error
    assert call(capsys, *words, "--out", out)[0] == 0
    resumed, expected = (FeatureProfile.from_pretrained(path) for path in (out, tmp_path / "all"))
    assert (resumed.observations, len(calls)) == (3, 4)
    assert np.array_equal(resumed.matrices["cosine"], expected.matrices["cosine"])


def test_plan_shows_a_table_and_writes_what_it_shows(made, tmp_path, capsys):
    profile, _ = made
    status, printed, error = call(capsys, "plan", "--profile", profile, "--updates", "3")
    assert status == 0, error
    assert "layer1.ff" in printed
    assert "updates" in printed
    common = ["plan", "--profile", profile, "--json", "--updates", "3", "--out", tmp_path / "plan"]
    for method, words in {
        "uniform": [],
        "unified": [],
        "block": ["--metric", "l1", "--no-force-last"],
    }.items():
        status, printed, error = call(capsys, *common, "--method", method, *words, "--bubble", "0")
        assert status == 0, error
        loaded = CachePlan.from_pretrained(tmp_path / "plan")
        assert json.loads(printed)["method"] == loaded.method == method
        assert json.loads(printed)["schedules"] == {name: loaded.schedule(name) for name in loaded.blocks}
    status, printed, _ = call(capsys, *common, "--steps", "5")
    assert json.loads(printed)["steps"] == 5


@pytest.mark.parametrize("suffix", [".svg", ".png", ".webp"])
def test_heatmaps_are_pictures_of_plans_and_profiles(made, tmp_path, capsys, suffix):
    for name, source in zip(("profile", "plan"), made, strict=True):
        out = tmp_path / f"{name}{suffix}"
        status, _, error = call(capsys, "heatmap", source, "--out", out)
        assert status == 0, error
        if suffix == ".svg":
            assert out.read_text().count("<rect") > 10
        else:
            assert Image.open(out).size[0] > 100


def test_a_plans_picture_has_a_dark_cell_for_each_update(made, tmp_path, capsys):
    call(capsys, "heatmap", made[1], "--out", tmp_path / "plan.svg")
    dark = (tmp_path / "plan.svg").read_text().count("#1f5daa")
    assert dark == CachePlan.from_pretrained(made[1]).table.sum()


def test_errors_rollout_and_bench_run_on_a_plan(home, made, tmp_path, capsys):
    profile, plan = made
    model = ["--model", home / "policy", "--device", "cpu", "--json"]
    words = ["errors", *model, "--plan", plan, "--observations", "2", "--out", tmp_path / "errors.svg"]
    status, printed, error = call(capsys, *words)
    assert status == 0, error
    assert json.loads(printed)["action_error"] > 0
    marks = (tmp_path / "errors.svg").read_text().count("#1f5daa")
    assert marks == CachePlan.from_pretrained(plan).table.sum()
    video = tmp_path / "episodes.webp"
    words = ["rollout", *model, "--plan", plan, "--tasks", "10,11", "--video", video]
    status, printed, error = call(capsys, *words)
    assert status == 0, error
    assert json.loads(printed)["episodes"] == 2
    assert Image.open(video).n_frames > 1
    words = ["bench", *model, "--profile", profile, "--updates", "3", "--bubble", "1", "--repeats", "1"]
    status, printed, error = call(capsys, *words, "--observations", "2")
    assert status == 0, error
    rows = json.loads(printed)
    assert rows["full"]["times_faster"] == 1
    assert rows["lean"]["action_error"] < 1e-6
    assert rows["bac"]["share"] < 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["profile", "--model", "{home}/policy", "--out", "{out}", "--metrics", "dot"], "metrics"),
        (["profile", "--model", "{home}/unet", "--out", "{out}"], "U-Net"),
        (["profile", "--model", "{home}/nowhere", "--out", "{out}"], "nowhere"),
        (["profile", "--model", "{home}/policy", "--out", "{out}", "--data", "missing.npz"], "missing.npz"),
        (["profile", "--model", "{home}/policy", "--out", "{out}", "--seed", "1000"], "seed"),
        (["plan", "--profile", "{home}/profile", "--out", "{out}", "--updates", "11"], "updates"),
        (["plan", "--profile", "{home}/profile", "--out", "{out}", "--bubble", "7"], "bubble"),
        (["plan", "--profile", "{home}/plan", "--out", "{out}"], "kind"),
        (["heatmap", "{home}/plan", "--out", "{out}.gif"], "svg"),
        (["rollout", "--model", "{home}/policy", "--video", "{out}.mp4"], "webp"),
        (["rollout", "--model", "{home}/policy", "--tasks", "12"], "tasks"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(home, made, tmp_path, capsys, words, named):
    out = tmp_path / "out"
    status, _, error = call(capsys, *(word.format(home=home, out=out) for word in words))
    assert status == 2
    assert error.count("\n") == 1
    assert named in error
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_policy_is_refused(home, made, tmp_path, capsys):
    torch.manual_seed(1)
    config = PolicyConfig(network="transformer", n_layer=2, n_head=2, n_emb=16, num_train_timesteps=K)
    NativePolicy(config).save_pretrained(tmp_path / "other")
    status, _, error = call(capsys, "rollout", "--model", tmp_path / "other", "--plan", made[1])
    assert status == 2
    assert "weights" in error
