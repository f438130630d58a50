"""What commands leave beyond the contract: a trace to look at, and a selection and an adapter that are used."""

import json
import shlex

import pytest
from noiseworks.core.cli import run
from noiseworks.mdpo.cli import app

DECODING = "--gen-length 8 --block-length 4 --steps 4"


@pytest.fixture
def model(host, tokenizer, tmp_path):
    host.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def call(capsys):
    def type_line(line):
        with pytest.raises(SystemExit) as stop:
            run(app, [*shlex.split(line), "--json"])
        printed, error = capsys.readouterr()
        assert stop.value.code == 0, error
        return json.loads(printed)

    return type_line


def test_a_trace_of_several_prompts_can_be_viewed(model, tmp_path, call):
    words = f"--model {model} --prompt 1+2= --prompt 12+3= {DECODING} --device cpu"
    made = call(f"generate {words} --trace {tmp_path}/trace.json")
    assert (len(made["completions"]), made["calls"]) == (2, 4)
    assert call(f"generate {words} --batch-size 1")["completions"] == made["completions"]
    assert len(call(f"viz {tmp_path}/trace.json --row 1 --out {tmp_path}/v.html")["steps"]) == 4
    page = (tmp_path / "v.html").read_text()
    assert page.count("<tr>") == 6
    assert "http" not in page


def test_a_selection_is_trained_on_and_the_adapter_is_used(model, tmp_path, call):
    data, chosen, out = (tmp_path / name for name in ("data.jsonl", "selection.json", "run"))
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "solution": "1"}) + "\n" for i in range(6)))
    words = f"--model {model} --data {data} --task rows --reward math {DECODING}"
    assert call(f"select {words} --out {chosen} --device cpu")["pool"] == 6
    record = json.loads(chosen.read_text()) | {"indices": [1, 4], "block_lengths": [8, 4]}
    chosen.write_text(json.dumps(record))
    train = f"train {words} --out {out} --selection {chosen} --temperature 1 --dtype bfloat16 --lora-rank 2"
    train += " --device cpu --max-steps 2 --batch-size 2 --num-generations 2 --sample-train-steps 2"
    first = call(train)
    assert first["steps"] == 2
    assert call(train) == first  # the same command again: nothing is left to do
    assert (out / "model" / "adapter_model.safetensors").is_file()
    call(f"generate --model {model} --adapter {out}/model --prompt 1+2= {DECODING} --device cpu")
