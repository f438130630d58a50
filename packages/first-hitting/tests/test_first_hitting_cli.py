"""The command line as a user types it, in process."""

import json

import pytest
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.core.cli import run
from noiseworks.first_hitting.cli import app
from noiseworks.kits.masked_lm import make_llada


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    make_llada(len(tokenizer), d_model=32, n_layers=2, **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def test_sample_writes_one_completion_a_line(model, tmp_path, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("countdown 3 7 12 = 48 :\nsort 5 3 :\n")
    common = ["--model", model, "--prompt", prompts, "--gen-length", "8", "--device", "cpu", "--json"]
    status, printed, _ = call(capsys, "sample", *common, "--out", out)
    assert status == 0
    first = json.loads(printed)["completions"]
    assert [json.loads(line)["completion"] for line in out.read_text().splitlines()] == first
    status, printed, _ = call(capsys, "sample", *common)
    assert json.loads(printed)["completions"] == first
    status, printed, _ = call(capsys, "sample", *common, "--variant", "parallel", "--steps", "2")
    assert status == 0
    status, printed, _ = call(capsys, "sample", *common, "--method", "gumbel32")
    assert status == 0


def test_compare_reports_quality_and_diversity_together(model, capsys):
    options = ["--gen-length", "6", "--samples", "2", "--grid", "4,16", "--device", "cpu", "--json"]
    status, printed, _ = call(capsys, "compare", "--model", model, *options)
    assert status == 0
    rows = json.loads(printed)["samplers"]
    assert [row["sampler"] for row in rows] == ["first-hitting", "ancestral, T = 4", "ancestral, T = 16"]
    assert all({"unigram_entropy", "distinct_tokens", "seconds", "calls"} <= set(row) for row in rows)


def test_precision_prints_the_closed_form(capsys):
    status, printed, _ = call(capsys, "precision", "--dtype", "float32", "--delta", "1e-6", "--json")
    assert status == 0
    found = json.loads(printed)
    assert found["bound"] == pytest.approx(16.6355, abs=1e-4)
    assert found["reveals relative to delta"] == pytest.approx(0.80574, abs=1e-3)
    assert found["at once"]["effective_temperature"] == pytest.approx(1, abs=1e-3)


def test_elbo_bounds_texts(model, capsys):
    options = ["--prompt", "countdown 3 7 12 = 48 :", "--draws", "2", "--device", "cpu", "--json"]
    status, printed, _ = call(capsys, "elbo", "--model", model, *options)
    assert status == 0
    found = json.loads(printed)
    assert found["tokens"] == 7
    assert found["nats"][0] > 0
