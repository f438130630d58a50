"""The command line as a user types it, in process."""

import csv
import json

import pytest
import torch
from noiseworks.bench.testbeds.countdown.networks import make_causal
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.core.cli import run
from noiseworks.freecache import Caching, Sampling, freecache_generate
from noiseworks.freecache.cli import app
from noiseworks.freecache.data import encode, load_task, texts
from noiseworks.kits.masked_lm import load_host, make_llada

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


def test_generate_takes_what_its_options_say(folder, tmp_path, capsys):
    """The options reach the loop: what the command prints is what the functions give."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\nsort 5 3 :\n")
    common = ["generate", "--model", folder / "model", "--gen-length", "8", "--block-length", "4"]
    common += ["--prompt", prompts, "--device", "cpu", "--json"]
    model, tokenizer, spec = load_host(folder / "model")
    ids, mask = encode(tokenizer, [PROMPT, "sort 5 3 :"], spec, torch.device("cpu"), False)
    rows = {}
    for words, sampling, caching in (
        ([], Sampling(8, 4), Caching()),
        (["--no-cache"], Sampling(8, 4), Caching(cache=False)),
        (["--threshold", "0"], Sampling(8, 4, threshold=0), Caching()),
        (
            [
                "--commit",
                "eager",
                "--refresh-every",
                "1",
                "--sliding",
                "0",
                "--reveal",
                "schedule",
                "--steps",
                "4",
            ],
            Sampling(8, 4, "schedule", steps=4),
            Caching(commit="eager", sliding=0, refresh_every=1),
        ),
    ):
        status, printed, error = call(capsys, *common, *words)
        assert status == 0, error
        expected = freecache_generate(
            model, ids, sampling, caching, attention_mask=mask, spec=spec, seeds=[0, 1]
        )
        found = json.loads(printed)
        assert found["texts"] == texts(tokenizer, expected.sequences[:, ids.shape[1] :], spec)
        assert (found["rows"], found["steps"]) == (expected.stats.rows, expected.stats.steps)
        rows[" ".join(words)] = found["rows"]
    assert rows["--threshold 0"] < rows["--no-cache"]
    status, printed, _ = call(
        capsys, *common, "--guide", folder / "guide", "--strategy", "topk", "--windows", "token"
    )
    assert status == 0
    assert json.loads(printed)["guide_calls"] > 0


def test_compare_writes_a_table_of_lengths_and_modes(folder, tmp_path, capsys):
    out = tmp_path / "table"
    words = ["compare", "--model", folder / "model", "--guide", folder / "guide", "--out", out, "--json"]
    words += ["--lengths", "8,16", "--modes", "none,cache,dual,guide,both", "--gen-length", "8"]
    words += ["--block-length", "4", "--repeats", "1", "--batch-size", "2", "--device", "cpu"]
    status, _, error = call(capsys, *words, "--reveal", "schedule", "--sliding", "0", "--windows", "block")
    assert status == 0, error
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["mode"]) for row in rows] == [
        (length, mode) for length in ("8", "16") for mode in ("none", "cache", "dual", "guide", "both")
    ]
    assert float(rows[1]["row_ratio"]) == pytest.approx(2 * 16 * 8 / (2 * (16 + 3 * 8 + 4 + 4 * 4)), abs=1e-3)
    assert float(rows[2]["row_ratio"]) == pytest.approx(2 * 16 * 8 / (2 * 2 * (16 + 3 * 4)), abs=1e-3)
    assert json.loads((out / "config.json").read_text())["batch_size"] == 2


def test_eval_counts_right_answers(tmp_path, capsys):
    """On a trained model: countdown is answered as the decoding itself answers, a file by its last number."""
    words = ["--gen-length", "16", "--block-length", "8", "--device", "cpu", "--json", "--problems", "8"]
    common = ["eval", "--model", "testbed:countdown", *words]
    status, printed, error = call(capsys, *common, "--task", "countdown", "--no-cache")
    assert status == 0, error
    found = json.loads(printed)
    model, tokenizer, spec = load_host("testbed:countdown")
    asked = load_task("countdown", 8, 0, 0)
    ids, mask = encode(tokenizer, [one.prompt for one in asked], spec, torch.device("cpu"), False)
    expected = freecache_generate(
        model, ids, Sampling(16, 8), Caching(cache=False), attention_mask=mask, spec=spec
    )
    answers = texts(tokenizer, expected.sequences[:, ids.shape[1] :], spec)
    right = sum(one.right(text) for one, text in zip(asked, answers, strict=True))
    assert 0 < right < 8, "the problems are too easy or too hard to tell anything"
    assert (found["right"], found["accuracy"]) == (right, right / 8)
    number = next(float(word) for word in reversed(answers[0].split()) if word.lstrip("-").isdigit())
    task = tmp_path / "task.jsonl"
    lines = [{"question": asked[0].prompt, "answer": f"#### {value}"} for value in (number, number + 1)]
    task.write_text("\n".join(map(json.dumps, lines)))
    status, printed, error = call(capsys, *common, "--task", task, "--no-cache")
    assert status == 0, error
    assert json.loads(printed)["right"] == 1
