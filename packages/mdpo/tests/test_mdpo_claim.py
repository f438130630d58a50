"""The claim on an untrained host of the testbed's tokenizer: what arms measure, what is shipped, when it is void."""

import json
from dataclasses import replace

import pytest
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm import make_llada
from noiseworks.mdpo import claim


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("claim"), make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    make_llada(len(tokenizer), d_model=32, n_layers=1, **ids).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = claim.CLAIM.scales["smoke"].settings
    return Context("smoke", settings, str(folder / "model"), "cpu", folder, lambda *step: None)


def right_where_zero(prompts, completions, *, problem, **columns):
    return [float(len(text) % 2) for text in completions]


def test_arms_measure_the_same_problems_and_trained_ones_are_shipped(context, monkeypatch):
    monkeypatch.setattr(claim, "right_answer", right_where_zero)
    found = {arm.name: claim.run_arm(arm.name, 5, context) for arm in claim.CLAIM.arms}
    count = context.settings["problems"]
    for arm, measured in found.items():
        assert len(measured.metrics["accuracy_trained"]) == count, arm
        assert ("accuracy_blocks" in measured.metrics) == (arm in claim.SAMPLERS)
        assert ("reward over updates" in measured.series) == (
            arm in ("mdpo", "mdpo_rcr", "final", "diffu_grpo", "sft")
        )
    assert set(claim.CLAIM.columns) - {"stress"} <= {name for one in found.values() for name in one.metrics}
    target = context.folder / "shipped"
    claim.ship_adapters(context.folder, target)
    for arm in claim.RECIPES:
        size = sum(file.stat().st_size for file in (target / arm).iterdir())
        assert size < 1_000_000
        model, rewards = claim.load_shipped(arm, context.model, target)
        assert len(rewards) == context.settings["updates"]
        trained, _ = claim.model_of(arm, 5, context)
        for name, value in claim.adapter_of(trained).items():
            torch.testing.assert_close(model.state_dict()[name], value.half().float())


@pytest.mark.parametrize(("share", "void"), [(0.0, True), (0.3, False), (1.0, True)])
def test_claim_is_void_where_nothing_can_be_gained_or_lost(share, void):
    values = [1.0] * round(100 * share) + [0.0] * round(100 * (1 - share))
    reason = claim.precondition({"base": [Measurement({"accuracy_trained": values})]})
    assert (reason is not None) == void


@pytest.fixture
def full_context(context, monkeypatch, tmp_path):
    """The full scale at small sizes, on files in MATH-500's form."""
    for name, first in ((claim.TEST_VARIABLE, 4), (claim.TRAIN_VARIABLE, 30)):
        records = [{"problem": f"sort {i} 3 :", "answer": f"{i}"} for i in range(first, first + 12)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
        monkeypatch.setenv(name, str(tmp_path / name))
    settings = claim.CLAIM.scales["full"].settings | {"length": 16, "dtype": "float32", "steps": (8,)}
    small = settings | {"problems": 6, "updates": 1, "prompts": 2, "train_steps": 8}
    return replace(context, scale="full", settings=small)


def test_full_scale_asks_and_trains_on_the_users_problems(full_context):
    setup = claim.setup_of(full_context)
    tested, taught = (claim.rows_of(setup, 6, 1000, split) for split in ("test", "train"))
    assert len({row["prompt"] for row in tested + taught}) == 12
    assert tested != claim.rows_of(setup, 6, 1001, "test")
    assert len(claim.rows_of(setup, 100, 1000, "train")) == 12
    assert taught[0]["answer"] == f"\\boxed{{{taught[0]['solution']}}}"
    config = claim.config_of("mdpo", 1000, full_context.settings, setup)
    assert (config.lora_rank, config.sample_train_steps, config.decoding.temperature) == (128, 8, 0.4)
    for arm in ("base", "rcr", "sft"):
        measured = claim.run_arm(arm, 1000, full_context)
        assert len(measured.metrics["accuracy_trained"]) == 6
        assert ("reward over updates" in measured.series) == (arm == "sft")


@pytest.mark.parametrize("name", [claim.TEST_VARIABLE, claim.TRAIN_VARIABLE])
def test_full_scale_without_problems_is_refused(full_context, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=f"{name} not set"):
        claim.run_arm("base", 1000, full_context)
