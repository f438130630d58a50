"""The command line as a user types it, in process: good runs, and bad input refused in one line."""

import json

import pytest
from noiseworks.core.cli import run
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.linear_ag.cli import app

SMALL = ["--steps", "4", "--scale", "4", "--device", "cpu", "--batch-size", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue square\n\na green circle\n")
    return file


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def test_calibrate_then_generate(model, prompts, tmp_path, capsys):
    common = ["--pipeline", model, "--prompts", prompts, *SMALL]
    status, out, _ = call(
        capsys, "calibrate", *common, "--out", tmp_path / "policy", "--target-nfe", "6", "--json"
    )
    assert status == 0
    assert json.loads(out)["space"] == "auto"
    policy = ["--policy", tmp_path / "policy", "--out", tmp_path / "images"]
    status, out, _ = call(capsys, "generate", *common, *policy, "--json")
    assert status == 0
    assert 5 <= json.loads(out)["mean_nfe"] <= 8
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{i:04d}.png" for i in range(3)} | {
        "trace.png",
        "report.json",
        "metrics.csv",
        "config.yaml",
    }
    reports = json.loads((tmp_path / "images" / "report.json").read_text())
    assert [len(report["nfe"]) for report in reports] == [2, 1]


def test_every_shared_option_is_shown_with_its_help(capsys):
    status, out, _ = call(capsys, "search", "--help")
    assert status == 0
    for words in ("--pipeline", "--batch-size", "--negative", "Guidance scale, above 1.", "Samples a run."):
        assert words in out


def test_fit_then_generate_with_linear(model, prompts, tmp_path, capsys):
    common = ["--pipeline", model, "--prompts", prompts, *SMALL]
    status, out, _ = call(capsys, "fit", *common, "--out", tmp_path / "coefs", "--json")
    assert status == 0
    assert json.loads(out)["lowest_r2"] <= 1.0
    assert not (tmp_path / "coefs.partial").exists()
    linear = ["--policy", "linear", "--coefs", tmp_path / "coefs", "--out", tmp_path / "images"]
    status, out, _ = call(capsys, "generate", *common, *linear, "--json")
    assert status == 0
    assert json.loads(out)["mean_nfe"] == 5.0
    other = ["generate", "--pipeline", model, "--prompts", prompts, *SMALL, "--negative", "large"]
    status, out, error = call(capsys, *other, *linear[:4], "--out", tmp_path / "none")
    assert status == 2
    assert "negative prompt" in error
    assert not (tmp_path / "none").exists()


def test_profile_and_search(model, prompts, tmp_path, capsys):
    common = ["--pipeline", model, "--prompts", prompts, *SMALL]
    status, out, _ = call(capsys, "profile", *common, "--out", tmp_path / "profile", "--json")
    assert status == 0
    assert {len(json.loads(out)[space]) for space in ("x_minus_eps", "x0", "eps")} == {4}
    assert len((tmp_path / "profile" / "gamma.csv").read_text().splitlines()) == 5
    words = ["--method", "truncation", "--budget", "6", "--out", tmp_path / "found", "--json"]
    status, out, _ = call(capsys, "search", *common, *words)
    assert status == 0
    assert json.loads(out)["actions"] == "2211"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--scale", "nan"], "guidance_scale"),
        (["--scale", "1"], "guidance_scale"),
        (["--steps", "-3"], "num_inference_steps"),
        (["--threshold", "nan"], "threshold"),
        (["--space", "pixels"], "space"),
        (["--policy", "2211"], "--steps 20"),
        (["--policy", "nothing"], "policy"),
        (["--policy", "linear"], "--coefs"),
        (["--pipeline", "no-such-folder"], "no model"),
        (["--pipeline", "testbed:unheard-of"], "unknown testbed"),
        (["--prompts", "gone.txt"], "gone.txt"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int8"], "int8"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_bad_input_is_one_line_status_two_and_nothing_written(change, named, tmp_path, capsys):
    words = {"--pipeline": str(tmp_path), "--prompts": "a red circle", "--out": str(tmp_path / "out")}
    words |= dict([change])
    status, out, error = call(capsys, "generate", *[word for pair in words.items() for word in pair])
    assert status == 2
    assert out == ""
    assert len(error.strip().splitlines()) == 1
    assert named in error
    assert not (tmp_path / "out").exists()


def test_broken_models_are_refused(model, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08")
    words = ["generate", "--prompts", "a red circle", "--out", tmp_path / "out"]
    status, _, error = call(capsys, *words, "--pipeline", broken)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    tiny_pipeline("instruct-pix2pix").save_pretrained(tmp_path / "editor")
    capsys.readouterr()  # what saving shows
    status, _, error = call(capsys, *words, "--pipeline", tmp_path / "editor")
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert "instruct-pix2pix" in error
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_of_the_output_is_refused(model, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    words = ["--pipeline", model, "--prompts", "a red circle", "--out", tmp_path / "out"]
    status, _, error = call(capsys, "generate", *words)
    assert (status, len(error.strip().splitlines())) == (2, 1)
    assert (tmp_path / "out").read_text() == "mine"
