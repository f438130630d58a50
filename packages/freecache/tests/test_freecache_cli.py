"""The command line as a user types it, in process."""

import csv
import json

import pytest
from noiseworks.bench.testbeds.countdown.networks import make_causal
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.core.cli import run
from noiseworks.freecache.cli import app
from noiseworks.kits.masked_lm import make_llada

PROMPT = "countdown 3 7 12 = 48 :"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    make_llada(len(tokenizer), d_model=32, n_layers=2, **ids).save_pretrained(home / "model")
    make_causal().save_pretrained(home / "guide")
    for name in ("model", "guide"):
        tokenizer.save_pretrained(home / name)
    return home


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def test_generate_completes_prompts_in_all_four_modes(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\nsort 5 3 :\n")
    common = ["generate", "--model", folder / "model", "--gen-length", "8", "--block-length", "4"]
    common += ["--device", "cpu", "--json"]
    found = {}
    for mode, words in {
        "none": ["--no-cache"],
        "cache": ["--commit", "eager", "--refresh-every", "1"],
        "guide": ["--guide", folder / "guide", "--no-cache"],
        "both": ["--guide", folder / "guide", "--strategy", "topk", "--windows", "token"],
    }.items():
        status, printed, error = call(capsys, *common, "--prompt", prompts, *words)
        assert status == 0, error
        found[mode] = json.loads(printed)
        assert found[mode]["mode"] == mode
        assert len(found[mode]["texts"]) == 2
    assert found["cache"]["rows"] < found["none"]["rows"]
    assert {"guide_calls", "acceptance_rate"} <= set(found["both"])
    status, printed, _ = call(capsys, *common, "--prompt", PROMPT, "--guide", folder / "guide")
    assert len(json.loads(printed)["texts"]) == 1


def test_bench_writes_a_table_of_lengths_and_modes(folder, tmp_path, capsys):
    out = tmp_path / "bench"
    words = ["bench", "--model", folder / "model", "--guide", folder / "guide", "--out", out, "--json"]
    words += ["--lengths", "8,16", "--modes", "none,cache,guide,both", "--gen-length", "8"]
    status, _, error = call(
        capsys, *words, "--block-length", "4", "--repeats", "1", "--batch-size", "2", "--device", "cpu"
    )
    assert status == 0, error
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["mode"]) for row in rows] == [
        (length, mode) for length in ("8", "16") for mode in ("none", "cache", "guide", "both")
    ]
    assert float(rows[1]["row_ratio"]) == pytest.approx(2 * 16 * 8 / (2 * (16 + 3 * 8 + 4 + 4 * 4)), abs=1e-3)
    assert json.loads((out / "config.json").read_text())["batch_size"] == 2


def test_probe_writes_drift_and_its_figure(folder, tmp_path, capsys):
    out = tmp_path / "probe"
    words = ["probe", "--model", folder / "model", "--prompt", PROMPT, "--out", out, "--gen-length", "8"]
    status, printed, error = call(capsys, *words, "--block-length", "4", "--device", "cpu", "--json")
    assert status == 0, error
    assert len(json.loads(printed)["clean"]) == 2
    assert {path.name for path in out.iterdir()} == {"config.json", "drift.csv", "drift.png"}


def test_eval_counts_right_answers(folder, tmp_path, capsys):
    task = tmp_path / "task.jsonl"
    task.write_text('{"question": "sort 5 3 :", "answer": "3 5 #### 5"}\n' * 3)
    common = ["eval", "--model", folder / "model", "--device", "cpu", "--json", "--gen-length", "8"]
    for words in (
        ["--task", task, "--problems", "2"],
        ["--task", "countdown", "--problems", "3", "--mode", "none"],
        ["--task", "countdown", "--problems", "2", "--examples", "64", "--mode", "both"],
    ):
        status, printed, error = call(capsys, *common, *words, "--guide", folder / "guide")
        assert status == 0, error
        found = json.loads(printed)
        assert 0 <= found["accuracy"] <= 1
        assert found["steps"] > 0


GENERATE = ["generate", "--model", "MODEL", "--prompt", PROMPT, "--device", "cpu"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "--model", "missing", "--prompt", "x"], "missing"),
        ([*GENERATE, "--gen-length", "10", "--block-length", "4"], "multiple"),
        ([*GENERATE, "--gen-length", "4096", "--block-length", "4"], "the model takes 512"),
        ([*GENERATE, "--steps", "7"], "multiple"),
        ([*GENERATE, "--temperature", "-1"], "temperature"),
        ([*GENERATE, "--order", "best"], "order"),
        ([*GENERATE, "--guide", "missing"], "missing"),
        ([*GENERATE, "--guide", "GUIDE", "--windows", "all"], "windows"),
        ([*GENERATE, "--guide", "GUIDE", "--verify", "0"], "verify"),
        ([*GENERATE, "--dtype", "int8"], "dtype"),
        ([*GENERATE, "--chat"], "chat template"),
        (["bench", "--model", "MODEL", "--out", "OUT", "--modes", "fast"], "modes"),
        (["bench", "--model", "MODEL", "--out", "OUT", "--modes", "both"], "need a guide"),
        (["bench", "--model", "MODEL", "--out", "OUT", "--lengths", "8,x"], "lengths"),
        (["bench", "--model", "MODEL", "--out", "OUT", "--repeats", "0"], "repeats"),
        (["probe", "--model", "MODEL", "--prompt", PROMPT, "--out", "OUT", "--steps", "1"], "steps"),
        (["eval", "--model", "MODEL", "--task", "unknown"], "unknown task"),
        (["eval", "--model", "MODEL", "--task", "countdown", "--mode", "fast"], "mode"),
        (["eval", "--model", "MODEL", "--task", "countdown", "--mode", "both"], "guide"),
        (["eval", "--model", "MODEL", "--task", "countdown", "--problems", "0"], "problems"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, capsys, words, part):
    places = {"MODEL": folder / "model", "GUIDE": folder / "guide", "OUT": tmp_path / "out"}
    status, printed, error = call(capsys, *[places.get(word, word) for word in words])
    assert status == 2
    assert printed == ""
    assert part in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
