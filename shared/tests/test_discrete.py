"""Masked diffusion: literal values, weights against derivatives, counts, and steps from given scores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core import discrete
from noiseworks.core.errors import InputError

SCHEDULES = {
    "linear": discrete.linear(),
    "cosine": discrete.cosine(),
    "poly": discrete.poly(2.5),
    "log_linear": discrete.log_linear(),
    "geometric": discrete.geometric(),
    "llada": discrete.llada(),
}
MASK = 9


def test_literals():
    t = torch.tensor([0.25, 0.5, 0.75])
    cosine = SCHEDULES["cosine"]
    assert cosine.mask_prob(t).tolist() == pytest.approx([0.382683, 0.707107, 0.923880], abs=1e-6)
    assert cosine.weight(t).tolist() == pytest.approx([3.792238, 1.570796, 0.650645], abs=1e-6)
    assert float(SCHEDULES["linear"].unmask_prob(0.5, 0.4)) == pytest.approx(0.2)
    assert float(cosine.unmask_prob(0.5, 0.4)) == pytest.approx(0.168746, abs=1e-6)
    assert -math.log(1 - float(SCHEDULES["log_linear"].mask_prob(0.5))) == pytest.approx(0.692148, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(max_examples=50, deadline=None)
@given(t=st.floats(0.01, 0.99))
def test_the_weight_is_the_logarithmic_derivative_of_the_mask_probability(name, t):
    schedule = SCHEDULES[name]
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.mask_prob(time).log(), time)
    assert float(schedule.weight(t)) == pytest.approx(float(slope), rel=1e-9)
    assert 0 <= float(schedule.mask_prob(t)) <= 1


def test_revealing_in_many_steps_equals_revealing_in_one():
    schedule = SCHEDULES["cosine"]
    t = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    stay = (1 - schedule.unmask_prob(t[:-1], t[1:])).prod()
    assert float(stay) == pytest.approx(1 - float(schedule.unmask_prob(t[0], t[-1])), rel=1e-12)


def test_the_loss_says_what_it_is_divided_by():
    cross_entropy = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    masked = torch.tensor([[True, False, True, False]])
    weight = torch.tensor([2.0])
    assert float(discrete.masked_loss(cross_entropy, masked, weight)) == 2 * 5 / 4
    assert float(discrete.masked_loss(cross_entropy, masked, weight, normalize="masked")) == 2 * 5 / 2
    assert float(
        discrete.masked_loss(cross_entropy, masked, weight, lengths=torch.tensor([3]))
    ) == pytest.approx(10 / 3)
    none = discrete.masked_loss(cross_entropy, torch.zeros_like(masked), weight, normalize="masked")
    assert float(none) == 0


def test_the_elbo_of_an_independent_model_is_its_entropy_under_every_schedule():
    # E_t[w(t) · (masked tokens) · H] = L H, whatever the schedule: ∫ m'(t) dt = m(1) − m(0)
    times = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for schedule in SCHEDULES.values():
        bound = (schedule.weight(times) * schedule.mask_prob(times)).mean()
        ends = schedule.mask_prob(torch.tensor([0.0, 1.0]))
        assert float(bound) == pytest.approx(float(ends[1] - ends[0]), rel=1e-6)


@given(n=st.integers(0, 500), steps=st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_transfer_counts_are_even_and_complete(n, steps):
    counts = discrete.transfer_counts(n, steps)
    assert int(counts.sum()) == n
    assert int(counts.max() - counts.min()) <= 1
    assert bool((counts.diff() <= 0).all())


def test_transfer_counts_of_a_batch():
    assert discrete.transfer_counts(torch.tensor([7, 4]), 3).tolist() == [[3, 2, 2], [2, 1, 1]]


def test_scores():
    probs = torch.tensor([[[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]]], dtype=torch.float64)
    tokens = torch.tensor([[1, 2]])
    logits = probs.log() + 5
    assert discrete.token_scores(logits, tokens, "confidence")[0].tolist() == pytest.approx([0.3, 0.5])
    assert discrete.token_scores(logits, tokens, "margin")[0].tolist() == pytest.approx([0.2, 0.25])
    entropy = [sum(p * math.log(p) for p in row) for row in probs[0].tolist()]
    assert discrete.token_scores(logits, tokens, "neg_entropy")[0].tolist() == pytest.approx(entropy)
    certain = torch.tensor([[[0.0, -math.inf, -math.inf]]])
    assert float(discrete.token_scores(certain, torch.tensor([[0]]), "neg_entropy")) == 0
    assert discrete.token_scores(logits.bfloat16(), tokens, "confidence").dtype == torch.float32


@given(
    scores=st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 1.0]), min_size=1, max_size=8),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_select_top_equals_a_sort(scores, data):
    n = len(scores)
    eligible = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    count = data.draw(st.integers(0, n))
    order = sorted((i for i in range(n) if eligible[i]), key=lambda i: (-scores[i], i))
    chosen = discrete.select_top(torch.tensor([scores]), torch.tensor([eligible]), count)
    assert chosen[0].nonzero().flatten().tolist() == sorted(order[:count])


def test_counts_may_differ_by_row_and_thresholds_always_take_one():
    scores = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2]])
    eligible = torch.tensor([[True, True, True], [True, True, True]])
    assert discrete.select_top(scores, eligible, torch.tensor([2, 0])).tolist() == [
        [True, False, True],
        [False] * 3,
    ]
    chosen = discrete.select_threshold(scores, eligible, 0.5)
    assert chosen.tolist() == [[True, False, True], [False, True, False]]
    nothing = discrete.select_threshold(scores, torch.zeros_like(eligible), 0.5)
    assert not bool(nothing.any())


def test_unmasking_only_touches_masked_positions():
    tokens = torch.tensor([[MASK, 3, MASK, MASK]])
    proposal = torch.tensor([[1, 2, 5, 6]])
    step = discrete.unmask_step(tokens, proposal, torch.tensor([[True, True, False, True]]), MASK)
    assert step.tokens.tolist() == [[1, 3, MASK, 6]]
    assert step.changed.tolist() == [[True, False, False, True]]
    logits = torch.randn(1, 4, 10)
    log_probs = torch.log_softmax(logits, -1)
    expected = log_probs[0, 0, 1] + log_probs[0, 3, 6]
    assert float(discrete.masked_log_prob(logits, step)) == pytest.approx(float(expected), rel=1e-6)


def test_remasking_takes_the_least_sure_tokens():
    tokens = torch.tensor([[1, 2, MASK, 4]])
    scores = torch.tensor([[0.9, 0.1, 0.0, 0.5]])
    step = discrete.remask_step(tokens, scores, torch.tensor([[True, True, True, False]]), 1, MASK)
    assert step.tokens.tolist() == [[1, MASK, MASK, 4]]
    assert step.changed.tolist() == [[False, True, False, False]]


def test_a_whole_run_reveals_everything_in_the_planned_number_of_steps():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((2, 11), MASK)
    tokens[0, :3] = 0
    counts = discrete.transfer_counts((tokens == MASK).sum(1), 4)
    for i in range(4):
        logits = torch.randn(2, 11, 9, generator=generator)
        proposal = logits.argmax(-1)
        scores = discrete.token_scores(logits, proposal, "confidence")
        chosen = discrete.select_top(scores, tokens == MASK, counts[:, i])
        tokens, changed = discrete.unmask_step(tokens, proposal, chosen, MASK)
        assert changed.sum(1).tolist() == counts[:, i].tolist()
    assert not bool((tokens == MASK).any())


def test_blocks():
    blocks = discrete.block_index(7, 2, prompt_length=3)
    assert blocks.tolist() == [-1, -1, -1, 0, 0, 1, 1]
    visible = discrete.block_causal(blocks)
    assert visible[3].tolist() == [True] * 5 + [False] * 2
    assert visible[0].tolist() == [True] * 3 + [False] * 4
    tokens = torch.tensor([[0, 0, 0, MASK, 1, 1, MASK], [0, 0, 0, 1, 1, MASK, 1], [0] * 7])
    assert discrete.active_block(tokens, blocks, MASK).tolist() == [0, 1, 2]
    first, last = discrete.masked_span(tokens, MASK)
    assert (first.tolist(), last.tolist()) == ([3, 5, 7], [6, 5, -1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SCHEDULES["linear"].unmask_prob(0.4, 0.5), "earlier time"),
        (lambda: discrete.poly(0.0), "power must be a number above 0"),
        (lambda: discrete.geometric(2.0, 1.0), "sigma_max must be"),
        (lambda: discrete.transfer_counts(4, 0), "num_steps must be"),
        (lambda: discrete.block_index(8, 3), "must be a multiple of block_length 3"),
        (
            lambda: discrete.token_scores(torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), "best"),
            "kind must be one of",
        ),
        (
            lambda: discrete.unmask_step(*[torch.full((1, 2), MASK)] * 2, torch.ones(1, 2).bool(), MASK),
            "proposal is the mask id 9",
        ),
        (
            lambda: discrete.masked_loss(
                torch.zeros(1, 2), torch.ones(1, 2).bool(), torch.ones(1), normalize="tokens"
            ),
            "normalize must be one of",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
