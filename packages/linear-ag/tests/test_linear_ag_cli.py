"""What the commands' contract does not see: the numbers that they report."""

import json

import pytest
from noiseworks.core.cli import run
from noiseworks.kits.diffusers_hosts import read_prompts, tiny_pipeline
from noiseworks.linear_ag.cli import app


@pytest.fixture
def desk(tmp_path):
    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n\na green circle\n")
    return tmp_path


def call(capsys, desk, line):
    words = f"{line} --model {desk}/tiny --prompts {desk}/prompts.txt --num-inference-steps 4".split()
    words += ["--guidance-scale", "4", "--device", "cpu", "--batch-size", "2", "--json"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(app, words)
    out, error = capsys.readouterr()
    return stop.value.code, json.loads(out) if out else error


def test_a_calibrated_policy_costs_about_its_aim_and_linear_what_its_digits_say(desk, capsys):
    status, found = call(capsys, desk, f"calibrate --target-nfe 6 --out {desk}/policy")
    assert (status, found["space"]) == (0, "auto")
    status, found = call(capsys, desk, f"generate --policy {desk}/policy --out {desk}/images")
    assert status == 0
    assert 5 <= found["mean_nfe"] <= 8
    assert found["of_full_guidance"] == found["mean_nfe"] / 8
    reports = json.loads((desk / "images" / "report.json").read_text())
    assert [len(report["nfe"]) for report in reports] == [2, 1]
    status, found = call(capsys, desk, f"fit --out {desk}/coefs")
    assert status == 0
    assert not (desk / "coefs.partial").exists()
    linear = f"generate --policy linear --coefs {desk}/coefs"
    status, found = call(capsys, desk, f"{linear} --out {desk}/linear")
    assert (status, found["mean_nfe"]) == (0, 5.0)
    status, error = call(capsys, desk, f"{linear} --negative-prompt large --out {desk}/none")
    assert (status, "negative prompt" in error, (desk / "none").exists()) == (2, True, False)


def test_what_names_a_file_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("one\n\ntwo\n")
    assert read_prompts("list") == ["one", "two"]
    assert read_prompts("a list. of things") == ["a list. of things"]
    assert read_prompts("a cat, 3.5") == ["a cat, 3.5"]
