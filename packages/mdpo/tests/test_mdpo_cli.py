"""The command line as a user types it, in process; and `kill -9` in the middle of a run."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from noiseworks.core.cli import run
from noiseworks.mdpo.cli import app

DECODING = ["--gen-length", "8", "--block-length", "4", "--steps", "4"]
CONFIG = {
    "task": "rows",
    "reward": "length",
    "decoding": {"gen_length": 8, "block_length": 8, "steps": 4, "temperature": 1.0},
    "training": {
        "updates": 4,
        "num_generations": 4,
        "prompts_per_update": 2,
        "sample_train_steps": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 1,
        "accelerator": "cpu",
    },
}


@pytest.fixture
def model(host, tokenizer, tmp_path):
    host.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def countdown(tmp_path):
    path = tmp_path / "countdown.jsonl"
    rows = [{"input": "3,7,12", "output": "48"}, {"input": "1,2,3", "output": "6"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def write_config(model, data, tmp_path):
    def write(drop=(), **changes):
        settings = {"model": str(model), "data": str(data), **CONFIG}
        for key, value in changes.items():
            old = settings.get(key)
            settings[key] = {**old, **value} if isinstance(old, dict) else value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if k not in drop}))
        return path

    return write


def call(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def lines(error):
    """Return the lines on stderr besides transformers' progress bar."""
    return [line for line in error.splitlines() if line and not line.startswith("Loading weights")]


def test_generate_completes_and_its_trace_can_be_viewed(model, tmp_path, capsys):
    words = ["--model", model, "--prompt", "1+2=", "--prompt", "12+3=", *DECODING, "--device", "cpu"]
    status, printed, _ = call(capsys, "generate", *words, "--trace", tmp_path / "trace.json", "--json")
    assert status == 0
    made = json.loads(printed)
    assert (len(made["completions"]), made["calls"]) == (2, 4)
    status, printed, _ = call(
        capsys, "viz", tmp_path / "trace.json", "--row", "1", "--out", tmp_path / "v.html"
    )
    assert status == 0
    assert "step" in printed
    page = (tmp_path / "v.html").read_text()
    assert page.count("<tr>") == 6
    assert "http" not in page
    for more in (["--remask", "low_confidence"], ["--dtype", "bfloat16", "--temperature", "0.5"]):
        assert call(capsys, "generate", *words, *more)[0] == 0


def test_eval_counts_and_writes(model, countdown, tmp_path, capsys):
    words = ["--model", model, "--data", countdown, *DECODING, "--device", "cpu", "--json"]
    status, printed, _ = call(capsys, "eval", *words, "--task", "countdown", "--out", tmp_path / "eval.json")
    assert status == 0
    found = json.loads(printed)
    assert (found["accuracy"], found["prompts"], found["calls"]) == (0.0, 2, 4)
    assert json.loads((tmp_path / "eval.json").read_text())["task"] == "countdown"


def test_selection_is_trained_on_and_the_adapter_is_used(model, data, write_config, tmp_path, capsys):
    chosen, out = tmp_path / "selection.json", tmp_path / "run"
    words = ["--model", model, "--data", data, "--task", "rows", "--reward", "length", *DECODING]
    status, printed, _ = call(capsys, "select", *words, "--out", chosen, "--device", "cpu", "--json")
    assert status == 0
    assert json.loads(printed)["pool"] == 6
    record = json.loads(chosen.read_text()) | {"indices": [1, 4], "block_lengths": [8, 4]}
    chosen.write_text(json.dumps(record))
    config = write_config(selection=str(chosen), dtype="bfloat16", training={"updates": 2, "lora_rank": 2})
    status, printed, error = call(capsys, "train", "--config", config, "--out", out, "--json")
    assert status == 0, error
    assert json.loads(printed)["updates"] == 2
    assert (out / "model" / "adapter_model.safetensors").is_file()
    words = ["--model", model, "--adapter", out / "model", "--prompt", "1+2=", *DECODING, "--device", "cpu"]
    assert call(capsys, "generate", *words)[0] == 0


DIES = """
import os, signal
from noiseworks.mdpo.cli import main
from noiseworks.mdpo.training import MDPOTrainer
update = MDPOTrainer._update
def update_or_die(self, batches):
    if self.done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, batches)
MDPOTrainer._update = update_or_die
main()
"""


@pytest.mark.parametrize(
    "training",
    [{"reference_sync_every": 2}, {"lora_rank": 2, "lora_dropout": 0.1}],
    ids=["whole", "lora"],
)
def test_a_killed_run_goes_on_with_bit_equal_updates(training, write_config, tmp_path, capsys):
    """The process dies in its fourth round; its last checkpoint is of the second."""
    config = write_config(training={**training, "updates": 5, "checkpoint_every": 2})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["train", "--config", str(config), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", DIES, *words, str(killed)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len((killed / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert not (killed / "model").exists()
    status, _, error = call(capsys, *words, killed)
    assert (status, "--resume" in error) == (2, True)
    assert call(capsys, *words, killed, "--resume")[0] == 0
    assert call(capsys, *words, whole)[0] == 0
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (whole, killed)]
    assert states[0]["done"] == 5
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    with (killed / "metrics.csv").open() as file:
        assert [row["update"] for row in csv.DictReader(file)] == list("12345")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"decoding": {"block_length": 3}}, "multiple of block_length"),
        ({"decoding": {"block_length": 4, "steps": 3}}, "multiple of the 2 blocks"),
        ({"decoding": {"temperature": 0.0}}, "temperature must be above 0"),
        ({"decoding": {"schedule": "square"}}, "square"),
        ({"decoding": {"length": 8}}, "length"),
        ({"training": {"num_generations": 1}}, "num_generations"),
        ({"training": {"lora_rank": 2, "lora_targets": ["nothing"]}}, "nothing"),
        ({"training": {"max_prompt_length": 1}}, "at most 1 tokens"),
        ({"reward": "countdown"}, "'numbers'"),
        ({"reward": "luck"}, "luck"),
        ({"task": "chess"}, "chess"),
        ({"data": "missing.jsonl"}, "missing.jsonl"),
        ({"model": "missing"}, "missing"),
        ({"selection": "missing.json"}, "missing.json"),
        ({"dtype": "int8"}, "int8"),
        ({"epochs": 3}, "epochs"),
        ({"drop": ("model",)}, "'model'"),
    ],
    ids=str,
)
def test_bad_configurations_are_one_line_and_leave_nothing(changes, part, write_config, tmp_path, capsys):
    out = tmp_path / "run"
    status, printed, error = call(capsys, "train", "--config", write_config(**changes), "--out", out)
    assert (status, printed, len(lines(error))) == (2, "", 1)
    assert part in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "--model", "MODEL", "--prompt", "1=", "--gen-length", "9", "--block-length", "4"], "9"),
        (["generate", "--model", "MODEL", "--prompt", "1[MASK]="], "mask id"),
        (["generate", "--model", "MODEL", "--prompt", ""], "no tokens"),
        (["generate", "--model", "MODEL", "--prompt", "1=", "--adapter", "MODEL"], "adapter"),
        (["generate", "--model", "MODEL", "--prompt", "1=", "--top-p", "2"], "top_p"),
        (["generate", "--model", "MODEL", "--prompt", "1=", "--seed", "-1"], "seed"),
        (["eval", "--model", "MODEL", "--data", "DATA"], "'input'"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--task", "rows"], "reward"),
        (["eval", "--model", "MODEL", "--data", "DATA", "--task", "rows", "--reward", "math"], "'solution'"),
        (["viz", "DATA"], "trace"),
        (["train", "--config", "missing.yaml", "--out", "OUT"], "missing.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, part, model, data, tmp_path, capsys):
    places = {"MODEL": model, "DATA": data, "OUT": tmp_path / "out"}
    before = sorted(tmp_path.iterdir())
    status, printed, error = call(capsys, *(places.get(word, word) for word in words))
    assert (status, printed, len(lines(error))) == (2, "", 1)
    assert part in error
    assert sorted(tmp_path.iterdir()) == before
