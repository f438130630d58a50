"""A user's mistakes: one clear line on stderr, exit status 2, nothing on stdout and nothing written."""

import json
import os

import pytest
from noiseworks.core.cli import dispatched
from noiseworks.dev.contracts import typed, written

# Commands that must be refused; {name} stands for a file or folder that `mistakes` makes.
BENCH = {
    "unknown method": ("bench --methods no-such-method", "no-such-method"),
    "unknown scale": ("bench --scale huge", "huge"),
    "negative seed": ("bench --seeds=-1", "-1"),
    "seed that is no number": ("bench --seeds one", "one"),
    "no jobs": ("bench --jobs 0", "jobs"),
    "unknown model": ("bench --model {empty}/no-such-model", "no-such-model"),
    "unknown testbed model": ("bench --model testbed:nothing", "testbed:nothing"),
    "unknown device": ("bench --device abacus", "abacus"),
    "output folder under a file": ("bench --out {file}/out", "out"),
    "results file that is missing": ("bench --compare {empty}/old.json", "old.json"),
    "results file that is cut off": ("bench --compare {cut}", "cut.json"),
    "results file of another version": ("bench --compare {other}", "noiseworks-results/0"),
    "folder without results": ("bench table {empty}/nowhere", "nowhere"),
    "unknown testbed to train": ("bench train-testbed no-such-model", "no-such-model"),
}
GENERATE = "linear-ag generate --prompts disc --out out"
METHODS = {
    "model that is no directory": (f"{GENERATE} --model {{empty}}/gone", "gone"),
    "folder that holds no model": (f"{GENERATE} --model {{empty}}", "empty"),
    "model that is no pipeline": (f"{GENERATE} --model testbed:shapes-vae", "model_index.json"),
    "model of the wrong family": (f"{GENERATE} --model {{video}}", "AnimateDiffPipeline"),
    "guidance scale NaN": (f"{GENERATE} --model testbed:shapes --guidance-scale nan", "nan"),
    "negative steps": (f"{GENERATE} --model testbed:shapes --num-inference-steps=-5", "-5"),
    "prompts file that is missing": (
        "linear-ag generate --model testbed:shapes --prompts {empty}/gone.txt --out out",
        "gone.txt",
    ),
    "images into a file": (
        "linear-ag generate --model testbed:shapes --prompts disc --out {file}",
        "file",
    ),
    "policy of another length": (f"{GENERATE} --model testbed:shapes --policy 2211", "4 digits"),
    "policy folder cut off": (f"{GENERATE} --model testbed:shapes --policy {{corrupt}}", "corrupt"),
    "target out of range": (
        "linear-ag calibrate --model testbed:shapes --prompts disc --out out --target-nfe 50",
        "50",
    ),
    "ldm without a model": ("ldm sample --model {empty}/gone --out out", "gone"),
}


@pytest.fixture
def mistakes(tmp_path):
    """Files and folders that a user could name by mistake."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.json").write_text('{"schema": "noiseworks-results/1", "claims": [')
    (tmp_path / "other.json").write_text(json.dumps({"schema": "noiseworks-results/0", "claims": []}))
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.json").write_text('{"kind": "linear-ag/policy", "format_version": 1}')
    (tmp_path / "corrupt" / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "model_index.json").write_text('{"_class_name": "AnimateDiffPipeline"}')
    (tmp_path / "work").mkdir()
    names = {
        "file": "file",
        "empty": "empty",
        "corrupt": "corrupt",
        "video": "video",
        "cut": "cut.json",
        "other": "other.json",
    }
    return {name: tmp_path / path for name, path in names.items()}


@pytest.mark.parametrize(("line", "named"), {**BENCH, **METHODS}.values(), ids={**BENCH, **METHODS})
def test_mistake_is_refused_in_one_line(line, named, mistakes, tmp_path):
    before = written(tmp_path)
    program, *words = (word.format(**mistakes) for word in line.split())
    done = typed(dispatched()[program].load(), words, tmp_path / "work")
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert named in done.stderr
    assert done.stdout == ""
    assert written(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_without_permission_is_refused(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run("noiseworks", "bench", "--out", tmp_path / "locked" / "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "locked" in done.stderr
