"""The command line as a user types it, in process, and the claim at its smallest."""

import json

import pytest
import torch
from noiseworks.core.cli import run
from noiseworks.mode.cli import app
from PIL import Image


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    words = [
        "train",
        "tabletop",
        out,
        "--episodes",
        "3",
        "--steps",
        "3",
        "--batch-size",
        "16",
        "--width",
        "16",
    ]
    words += ["--layers", "1", "--heads", "2", "--device", "cpu", "--no-progress", "--json"]
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    assert stop.value.code == 0
    return out


def test_train_writes_a_model_and_refuses_a_used_folder(trained, capsys):
    assert (trained / "model/model.safetensors").is_file()
    status, _, error = call(capsys, "train", "tabletop", trained, "--episodes", "3")
    assert (status, error.count("\n")) == (2, 1)
    assert "--resume" in error


def test_eval_counts_successes_and_films_them(trained, tmp_path, capsys):
    video = tmp_path / "out.webp"
    words = ["eval", trained / "model", "--tasks", "9", "--tasks", "10", "--episodes", "1", "--video", video]
    status, printed, error = call(capsys, *words, "--json")
    assert status == 0, error
    found = json.loads(printed)
    assert found["cache_hit_rate"] == 1
    assert set(found["success_by_task"]) == {"9", "10"}
    assert Image.open(video).n_frames > 5


def test_cache_reports_that_it_is_exact(trained, capsys):
    status, printed, _ = call(capsys, "cache", trained / "model", "--form", "bmm", "--json")
    found = json.loads(printed)
    assert (status, found["misses"], found["hit_rate"], found["steps"]) == (0, 0, 1, 10)
    assert max(found[f"largest_difference_batch_{n}"] for n in (1, 7, 64)) < 1e-5


def test_usage_draws_a_heat_map(trained, tmp_path, capsys):
    status, printed, _ = call(capsys, "usage", trained / "model", "--out", tmp_path / "u.png", "--json")
    found = json.loads(printed)
    assert status == 0
    torch.testing.assert_close(torch.tensor(found["usage"]).sum(-1), torch.ones(1, 10))
    assert Image.open(tmp_path / "u.png").size[0] > 200


def test_bench_compares_with_a_dense_model(trained, capsys):
    words = ["bench", trained / "model", "--against", "shipped:dense-large", "--repeats", "2", "--json"]
    words += ["--backend", "eager"]
    status, printed, error = call(capsys, *words)
    assert status == 0, error
    found = json.loads(printed)
    assert found["routed"]["ratio"] == 1
    compiled = {"merged_compiled", "dense_compiled"}
    assert set(found) == {"routed", "merged", "bmm", "dense", "flops", "dense_flops"} | compiled


def test_finetune_keeps_routers(trained, tmp_path, capsys):
    words = [
        "finetune",
        trained / "model",
        "tabletop",
        tmp_path / "tuned",
        "--freeze-routers",
        "--episodes",
        "3",
    ]
    words += ["--steps", "2", "--batch-size", "16", "--device", "cpu", "--no-progress"]
    status, _, error = call(capsys, *words)
    assert status == 0, error
    assert (tmp_path / "tuned/model/config.json").is_file()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["eval", "nowhere"], "no model at 'nowhere'"),
        (["eval", "shipped:none"], "unknown shipped model"),
        (["eval", "shipped:mode", "--tasks", "12"], "task must be"),
        (["eval", "shipped:mode", "--video", "out.gif"], "ending in .webp"),
        (["cache", "shipped:dense-large"], "dense model has no experts"),
        (["usage", "shipped:mode", "--out", "map.txt"], "must end in .png or .webp"),
        (["train", "nowhere", "out"], "no data at nowhere"),
        (["train", "tabletop", "out", "--experts", "2", "--top-k", "3"], "top_k"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, error = call(capsys, *words)
    assert (status, printed, error.count("\n")) == (2, "", 1)
    assert match in error
    assert not list(tmp_path.iterdir())
