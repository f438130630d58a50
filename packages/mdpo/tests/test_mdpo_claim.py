"""The claim on an untrained host of the testbed's tokenizer: what arms measure, what is shipped, when it is void."""

import pytest
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
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
        trained, _ = claim.model_of(arm, 5, context.model, context)
        for name, value in claim.adapter_of(trained).items():
            torch.testing.assert_close(model.state_dict()[name], value.half().float())


@pytest.mark.parametrize(("share", "void"), [(0.0, True), (0.3, False), (1.0, True)])
def test_claim_is_void_where_nothing_can_be_gained_or_lost(share, void):
    values = [1.0] * round(100 * share) + [0.0] * round(100 * (1 - share))
    reason = claim.precondition({"base": [Measurement({"accuracy_trained": values})]})
    assert (reason is not None) == void
