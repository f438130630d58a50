"""Reveal schedules, filters and the two baseline samplers."""

import copy

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.masked_lm import (
    HostSpec,
    confidence,
    detect_host,
    dream_generate,
    filter_logits,
    llada_generate,
    make_dream,
    make_llada,
    pad_prompts,
    transfer_schedule,
)
from scipy.stats import chisquare
from torch import nn

MASK, EOS, PAD = 30, 28, 29
OPTIONS = {"d_model": 32, "n_layers": 2, "mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
HOSTS = {"llada": make_llada(31, **OPTIONS), "dream": make_dream(31, **OPTIONS)}


@pytest.mark.parametrize(
    ("kind", "masks", "steps", "expected"),
    [
        ("even", 10, 4, [3, 3, 2, 2]),
        ("even", 2, 4, [1, 1, 0, 0]),
        ("linear", 16, 8, [2] * 8),
        ("linear", 10, 4, [3, 2, 3, 2]),
        ("linear", 12, 7, [2, 2, 2, 1, 2, 2, 1]),
        ("cosine", 16, 8, [1, 1, 1, 2, 3, 2, 3, 3]),
        ("cosine", 32, 8, [1, 2, 3, 4, 5, 5, 6, 6]),
        ("pow2", 10, 4, [1, 2, 3, 4]),
        ("log", 16, 8, [4, 4, 3, 1, 2, 1, 1, 0]),
        ("exp", 16, 8, [2, 0, 1, 1, 2, 2, 4, 4]),
        ("log", 1, 3, [1, 0, 0]),
        ("dream", 16, 8, [1, 2, 2, 2, 2, 2, 2, 3]),
        ("dream", 16, 16, [0, *[1] * 14, 2]),
        ("dream", 32, 8, [3, 4, 4, 4, 4, 4, 4, 5]),
        ("dream", 10, 4, [2, 2, 2, 4]),
    ],
)
def test_schedules(kind, masks, steps, expected):
    assert transfer_schedule(masks, steps, kind) == expected


@pytest.mark.parametrize("kind", ["even", "linear", "cosine", "pow1.5", "log", "exp", "dream"])
def test_schedules_reveal_everything(kind):
    for masks in (0, 1, 7, 64):
        for steps in (1, 3, 10, 80):
            counts = transfer_schedule(masks, steps, kind)
            assert len(counts) == steps
            assert sum(counts) == masks
            assert min(counts) >= 0


def test_unknown_schedules_and_confidences_are_refused():
    with pytest.raises(InputError, match="schedule"):
        transfer_schedule(4, 2, "quadratic")
    with pytest.raises(InputError, match="kind"):
        confidence(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), "best")


def test_confidences():
    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    token = torch.tensor([[0]])
    assert float(confidence(logits, token, "top1")) == pytest.approx(0.5)
    assert float(confidence(logits, token, "margin")) == pytest.approx(0.2)
    p = torch.tensor([0.5, 0.3, 0.2])
    assert float(confidence(logits, token, "neg_entropy")) == pytest.approx(float((p * p.log()).sum()))


def test_filters_keep_the_crossing_token_and_the_top():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert filter_logits(logits, top_p=0.6).isinf().tolist() == [False, False, True, True]
    assert filter_logits(logits, top_k=3).isinf().tolist() == [False, False, False, True]
    with pytest.raises(InputError):
        filter_logits(logits, top_p=0.0)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_batches_of_different_prompts_equal_single_runs(kind, temperature):
    model, spec = HOSTS[kind], detect_host(HOSTS[kind])
    prompts = [torch.randint(28, (n,)).tolist() for n in (3, 9)]
    ids, mask = pad_prompts(prompts, spec.pad_id)

    def runs(ids, mask, seeds):
        shared = {"attention_mask": mask, "temperature": temperature, "seeds": seeds}
        yield llada_generate(model, ids, gen_length=8, block_length=4, steps=4, cfg_scale=0.5, **shared)
        yield dream_generate(
            model, ids, max_new_tokens=8, steps=4, alg="entropy", alg_temp=0.3, top_p=0.9, **shared
        )
        yield dream_generate(model, ids, max_new_tokens=8, steps=4, alg="origin", **shared)

    batch = [output.sequences[:, -8:] for output in runs(ids, mask, [1, 2])]
    for row in range(2):
        alone = torch.tensor([prompts[row]])
        for found, output in zip(batch, runs(alone, torch.ones_like(alone), [1 + row]), strict=True):
            assert torch.equal(found[row], output.sequences[0, -8:])
            assert not (found == MASK).any()


def test_one_token_a_step_surest_first():
    model = HOSTS["llada"]
    output = llada_generate(model, torch.tensor([[1, 2, 3]]), gen_length=6, steps=6, record=True)
    left = [(canvas == MASK).sum().item() for canvas in output.history]
    assert left == [5, 4, 3, 2, 1, 0]
    assert output.calls == 6
    blocks = llada_generate(
        model, torch.tensor([[1, 2, 3]]), gen_length=6, block_length=2, steps=6, record=True
    )
    assert not (blocks.history[1][:, 3:5] == MASK).any()
    assert (blocks.history[1][:, 5:] == MASK).all()


def test_ends_of_text_can_be_switched_off_or_put_last():
    class Ends(nn.Module):
        config = type("Config", (), {"model_type": "llada"})()

        def forward(self, ids, attention_mask=None):
            logits = torch.zeros(*ids.shape, 31)
            logits[..., 5] = 1.0
            logits[:, ::2, EOS] = 3.0
            return type("Output", (), {"logits": logits})()

    spec = HostSpec(MASK, (EOS,), PAD, 0, None, None, "llada")
    prompt = torch.zeros(1, 2, dtype=torch.long)
    off = llada_generate(Ends(), prompt, gen_length=4, steps=4, eos_off=True, spec=spec)
    assert off.sequences[0, 2:].tolist() == [5, 5, 5, 5]
    last = llada_generate(Ends(), prompt, gen_length=4, steps=4, eos_last=True, spec=spec, record=True)
    assert last.history[1][0, 2:].tolist() == [MASK, 5, MASK, 5]
    assert last.sequences[0, 2:].tolist() == [EOS, 5, EOS, 5]


def test_draws_follow_the_model():
    class Fixed(nn.Module):
        config = type("Config", (), {"model_type": "llada"})()

        def forward(self, ids, attention_mask=None):
            p = torch.tensor([0.6, 0.3, 0.1, 1.0]).log()
            return type("Output", (), {"logits": p.expand(*ids.shape, 4)})()

    spec = HostSpec(3, (2,), 2, 0, None, None, "llada")
    prompts = torch.zeros(6000, 1, dtype=torch.long)
    tokens = llada_generate(
        Fixed(), prompts, gen_length=1, steps=1, temperature=1.0, spec=spec, seeds=range(6000)
    )
    counts = tokens.sequences[:, 1].bincount(minlength=3).numpy()
    assert chisquare(counts, [3600, 1800, 600]).pvalue > 1e-3


def test_hooks_of_dream_are_called():
    seen = []

    def tokens_hook(step, tokens, logits):
        seen.append(step)
        return tokens

    def logits_hook(step, tokens, logits):
        logits[..., 7] = 100.0
        return logits

    output = dream_generate(
        HOSTS["dream"],
        torch.tensor([[1, 2]]),
        max_new_tokens=4,
        steps=3,
        alg="maskgit_plus",
        tokens_hook=tokens_hook,
        logits_hook=logits_hook,
    )
    assert seen == [None, 0, 1, 2]
    assert output.sequences[0, 2:].tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gen_length": 6, "block_length": 4}, "multiple"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "multiple"),
        ({"gen_length": 8, "remasking": "best"}, "remasking"),
        ({"gen_length": 600}, "takes 512"),
        ({"gen_length": 4, "temperature": -1.0}, "temperature"),
        ({"gen_length": 4, "seeds": [1, 2]}, "seed"),
    ],
)
def test_bad_settings_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        llada_generate(HOSTS["llada"], torch.tensor([[1, 2, 3]]), **options)


def test_bad_prompts_are_refused():
    with pytest.raises(InputError, match="mask id"):
        llada_generate(HOSTS["llada"], torch.tensor([[1, MASK]]), gen_length=4)
    with pytest.raises(InputError, match="no tokens"):
        pad_prompts([[1], []], PAD)


@pytest.mark.parametrize("kind", HOSTS)
def test_a_model_of_nan_stops_with_the_call(kind):
    model = copy.deepcopy(HOSTS[kind])
    model.get_output_embeddings().weight.data[3] = torch.nan
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(NonFiniteError, match="logit of a position is not finite at step 0"):
        llada_generate(model, ids, gen_length=4)
    with pytest.raises(NonFiniteError, match="logit of a position is not finite at step 0"):
        dream_generate(model, ids, max_new_tokens=4, steps=4)
