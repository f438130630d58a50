"""The claim on untrained hosts: what arms measure, what the full scale asks of, and when the claim is void."""

import json

import pytest
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.countdown.networks import make_causal
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.core.errors import InputError
from noiseworks.freecache import claim
from noiseworks.freecache.data import shown_questions
from noiseworks.kits.masked_lm import make_llada

ARMS = [arm.name for arm in claim.CLAIM.arms]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home, tokenizer = tmp_path_factory.mktemp("claim"), make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    make_llada(len(tokenizer), d_model=32, n_layers=2, **ids).save_pretrained(home / "model")
    make_causal().save_pretrained(home / "guide")
    for name in ("model", "guide"):
        tokenizer.save_pretrained(home / name)
    lines = [json.dumps({"question": f"sort {i} 3 :", "answer": f"3 {i}"}) for i in range(4, 24)]
    (home / "questions.jsonl").write_text("\n".join(lines))
    return home


def context_of(folder, scale, **changes):
    settings = claim.CLAIM.scales[scale].settings | changes
    return Context(scale, settings, str(folder / "model"), "cpu", folder, lambda *step: None)


def test_arms_measure_the_same_problems(folder):
    context = context_of(folder, "smoke", few=2, batch=2)
    found = {arm: claim.run_arm(arm, 5, context).metrics for arm in ARMS}
    for arm, metrics in found.items():
        assert len(metrics["accuracy"]) == (2 if arm in claim.FEW else 4), arm
        assert ("accuracy_long" in metrics) == (arm in claim.LONG)
    assert set(claim.CLAIM.columns) <= set(found["full"])
    for target in claim.CLAIM.targets:
        sizes = [len(found[arm][target.metric]) for arm in (target.arm, target.against)]
        assert sizes[0] == sizes[1], target.name
    assert found["lazy"]["rows"] < found["sliding"]["rows"] < found["full"]["rows"]
    assert found["full"]["agreement"] == [1.0] * 4


def test_full_scale_asks_the_users_questions(folder, monkeypatch):
    monkeypatch.setenv(claim.DATA_VARIABLE, str(folder / "questions.jsonl"))
    monkeypatch.setenv(claim.GUIDE_VARIABLE, str(folder / "guide"))
    sizes = {"problems": 4, "few": 2, "long": 2, "batch": 2, "tokens": 64, "long_tokens": 128, "block": 8}
    context = context_of(folder, "full", **sizes, length=16, dtype="float32")
    setup = claim.setup_of(context, 1000, long=False)
    assert (setup.guide, setup.sliding) == (str(folder / "guide"), 32)
    for arm in ("full", "sliding", "both"):
        metrics = claim.run_arm(arm, 1000, context).metrics
        assert len(metrics["accuracy"]) == 4
        assert len(metrics["accuracy_long"]) == 2


@pytest.mark.parametrize("name", [claim.DATA_VARIABLE, claim.GUIDE_VARIABLE])
def test_full_scale_without_questions_or_guide_is_refused(folder, monkeypatch, name):
    monkeypatch.setenv(claim.DATA_VARIABLE, "questions.jsonl")
    monkeypatch.setenv(claim.GUIDE_VARIABLE, "guide")
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=f"{name} not set"):
        claim.run_arm("full", 1000, context_of(folder, "full"))


def test_questions_stand_behind_solved_ones(folder):
    tokenizer = make_tokenizer()
    file = str(folder / "questions.jsonl")
    found = shown_questions(file, tokenizer, 4, 60, seed=1)
    assert [question.prompt for question in found] == [
        question.prompt for question in shown_questions(file, tokenizer, 4, 60, seed=1)
    ]
    asked = [question.prompt.rsplit("Question: ", 1)[1] for question in found]
    assert len(set(asked)) == 4
    for question, own in zip(found, asked, strict=True):
        assert question.prompt.endswith(" :\nAnswer:")
        assert question.prompt.count("Question:") > 2
        assert len(tokenizer(question.prompt).input_ids) <= 60
        shown = question.prompt.removesuffix(own)
        assert all(other.removesuffix("\nAnswer:") not in shown for other in asked)
        number = own.split()[1]
        assert question.right(f" {number}\n\nQuestion: sort 77 3")
        assert not question.right(" 77")
    with pytest.raises(InputError, match="need more than 20"):
        shown_questions(file, tokenizer, 20, 60, seed=1)
    with pytest.raises(InputError, match="no file of questions"):
        shown_questions("missing.jsonl", tokenizer, 2, 60, seed=1)


@pytest.mark.parametrize(("share", "void"), [(0.0, True), (0.2, False)])
def test_claim_is_void_where_nothing_can_be_lost(share, void):
    values = [1.0] * round(10 * share) + [0.0] * round(10 * (1 - share))
    assert (claim.precondition({"full": [Measurement({"accuracy": values})]}) is not None) == void
