"""The claim on an untrained host of the testbed's tokenizer: what arms measure, what is kept, the user's files."""

import json

import pytest
import torch
from noiseworks.bench import shipped
from noiseworks.bench.claims import Context
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.kits.masked_lm import make_llada
from noiseworks.mdpo import claim


@pytest.fixture
def context(tmp_path):
    tokenizer = make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    make_llada(len(tokenizer), d_model=32, n_layers=1, **ids).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = claim.CLAIM.scales["smoke"].settings
    return Context("smoke", settings, str(tmp_path / "model"), "cpu", tmp_path, lambda *step: None)


def right_where_odd(prompts, completions, *, problem, **columns):
    return [float(len(text) % 2) for text in completions]


def test_arms_measure_the_same_problems_and_what_is_trained_is_kept(context, monkeypatch):
    monkeypatch.setattr(claim, "right_answer", right_where_odd)
    shared = claim.prepare(5, context)
    found = {arm.name: claim.run(arm.name, shared, context) for arm in claim.CLAIM.arms}
    count = context.settings["problems"]
    for arm, measured in found.items():
        assert len(measured.metrics["accuracy_trained"]) == count, arm
        assert ("accuracy_blocks" in measured.metrics) == (arm in claim.SAMPLERS)
        assert ("reward over updates" in measured.series) == (arm not in claim.SAMPLERS)
    assert set(claim.CLAIM.columns) - {"stress"} <= {name for one in found.values() for name in one.metrics}
    for arm in claim.RECIPES:
        config, tensors = shipped.load_from(context.folder, arm)
        assert len(config["rewards"]) == context.settings["updates"]
        trained, _ = claim.model_of(arm, shared, context)
        for name, value in claim.adapter_of(trained).items():
            torch.testing.assert_close(tensors[name], value.half().float())


def test_what_ships_fits_the_testbed():
    context = Context("quick", claim.CLAIM.scales["quick"].settings, None, "cpu", None, lambda *step: None)
    shared = claim.prepare(5, context)
    for arm in claim.RECIPES:
        model, rewards = claim.model_of(arm, shared, context)
        _, tensors = shipped.load(claim.PACKAGE, arm)
        assert len(rewards) == 100
        assert tensors.keys() == claim.adapter_of(model).keys()
        assert all(torch.equal(tensors[name], value) for name, value in claim.adapter_of(model).items())


def test_full_scale_asks_and_trains_on_the_users_problems(context, tmp_path):
    files = {}
    for name, first in (("test", 4), ("train", 30)):
        records = [{"problem": f"sort {i} 3 :", "answer": f"{i}"} for i in range(first, first + 12)]
        files[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = claim.CLAIM.scales["full"].settings | {"length": 16, "dtype": "float32", "steps": (8,)}
    settings |= {"problems": 6, "updates": 1, "prompts": 2, "train_steps": 8}
    full = Context("full", settings, context.model, "cpu", tmp_path, lambda *step: None, files)
    shared = claim.prepare(1000, full)
    assert len({row["prompt"] for row in (*shared.test, *shared.train)}) == 8
    assert shared.test != claim.prepare(1001, full).test
    assert len(claim.file_rows(files["train"], 100, 1000)) == 12
    assert shared.train[0]["answer"] == f"\\boxed{{{shared.train[0]['solution']}}}"
    config = claim.config_of("mdpo", 1000, full)
    assert (config.lora_rank, config.sample_train_steps, config.decoding.temperature) == (128, 8, 0.4)
    for arm in ("base", "rcr", "sft"):
        measured = claim.run(arm, shared, full)
        assert len(measured.metrics["accuracy_trained"]) == 6
        assert ("reward over updates" in measured.series) == (arm == "sft")
