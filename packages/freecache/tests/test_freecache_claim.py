"""The claim on untrained hosts: what arms measure, what the full scale asks of, and when the claim is void."""

import json

import pytest
from noiseworks.bench.claims import Context
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


def context_of(folder, scale, data=None, **changes):
    settings = claim.CLAIM.scales[scale].settings | changes
    return Context(scale, settings, str(folder / "model"), "cpu", folder, lambda *step: None, data or {})


def test_arms_measure_the_same_problems(folder):
    context = context_of(folder, "smoke", block=4, length=8)
    desks = claim.prepare(5, context)
    found = {arm: claim.run(arm, desks, context).metrics for arm in ARMS}
    for arm, metrics in found.items():
        assert len(metrics["accuracy"]) == (2 if arm in claim.FEW else 4), arm
        assert ("accuracy_long" in metrics) == (arm in claim.LONG)
    assert set(claim.CLAIM.columns) <= set(found["full"])
    for target in claim.CLAIM.targets:
        sizes = [len(found[arm][target.metric]) for arm in (target.arm, *target.rivals)]
        assert sizes[0] == sizes[1], target.name
    assert found["lazy"]["rows"] < found["sliding"]["rows"] < found["full"]["rows"]
    assert found["full"]["agreement"] == [1.0] * 4


def test_full_scale_asks_the_users_questions_with_the_users_guide(folder):
    sizes = {"problems": 4, "few": 2, "long": 2, "batch": 2, "tokens": 64, "block": 8, "length": 16}
    data = {"questions": str(folder / "questions.jsonl"), "guide": str(folder / "guide")}
    context = context_of(folder, "full", data, **sizes)
    assert set(data) == {one.name for one in claim.CLAIM.data}
    desks = claim.prepare(1000, context)
    assert [desk.questions[0].prompt.split()[0] for desk in desks.values()] == ["Question:", "Question:"]
    metrics = claim.run("sliding", desks, context).metrics
    assert (len(metrics["accuracy"]), len(metrics["accuracy_long"])) == (4, 2)


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
