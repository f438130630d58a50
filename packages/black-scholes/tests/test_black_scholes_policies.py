"""Policies: what they choose, step by step."""

import pytest
import torch
from noiseworks.black_scholes import (
    Alternating,
    BlackScholes,
    ClipMin,
    Linear,
    Pricing,
    StepSwitch,
    parse_prompt,
)
from noiseworks.black_scholes.policies import Step, realised_volatility
from noiseworks.core.errors import InputError


def step(index, scores=None, count=2, n=50, concepts=("a", "b", "c"), sigma=0.08):
    batch = 1 if scores is None else scores.shape[1]
    rows = [list(concepts[:count])] * batch
    return Step(index, n, rows, scores, max(index - 1, 0), sigma)


def choices(policy, n=50, count=2):
    return [int(policy.weights(step(i, count=count, n=n)).argmax()) for i in range(n)]


def scored(*rows):
    return torch.tensor([rows], dtype=torch.float64)


def test_clocks_tick_as_the_reference_does():
    assert choices(Alternating(), 6) == [0, 1, 0, 1, 0, 1]
    assert choices(Alternating(), 5, 3) == [0, 1, 2, 0, 1]
    assert choices(StepSwitch()) == [0] * 7 + [1] * 10 + [0] * 33
    assert choices(StepSwitch(), 20) == [0] * 3 + [1] * 4 + [0] * 13
    assert choices(StepSwitch((0.3,)), 10) == [0] * 3 + [1] * 7


def test_feedback_starts_with_the_first_concept_and_breaks_ties_to_the_last():
    for policy in (BlackScholes(), ClipMin()):
        assert policy.weights(step(0)).tolist() == [[1, 0]]
        found = policy.weights(step(5, scored([20, 30], [30, 20], [25, 25])))
        assert found.argmax(1).tolist() == [0, 1, 1]


def test_the_last_step_still_prices():
    late = step(49, scored([24.0, 25.0], [25.0, 24.0]), sigma=0.02)
    assert BlackScholes().weights(late).argmax(1).tolist() == [0, 1]


def test_strikes_of_their_own_make_concepts_comparable():
    # b shows 24 of the 25 that it can reach, a 26 of 34.
    found = step(20, scored([26.0, 24.0]))
    assert BlackScholes().weights(found).argmax(1).tolist() == [1]
    assert BlackScholes(strikes={"a": 34.0, "b": 25.0}).weights(found).argmax(1).tolist() == [0]


def test_a_score_that_moves_is_worth_more():
    history = torch.tensor(
        [[[24.0, 30.0]], [[24.1, 18.0]], [[24.0, 31.0]], [[24.0, 23.9]]], dtype=torch.float64
    )
    assert ClipMin().weights(step(4, history)).argmax(1).tolist() == [1]
    assert BlackScholes(Pricing(window=8)).weights(step(4, history)).argmax(1).tolist() == [0]
    assert float(realised_volatility(history[:2], 8).max()) == 0.0
    torch.testing.assert_close(realised_volatility(history, 2), history.log().diff(dim=0)[1:].std(0))


def test_softmin_blends_and_becomes_the_minimum():
    found = step(20, scored([24.0, 25.0]))
    weights = BlackScholes(Pricing(choice="softmin")).weights(found)
    assert 0.5 < float(weights[0, 0]) < 1
    assert float(weights.sum()) == pytest.approx(1)
    assert BlackScholes(Pricing(choice="softmin", kappa=1e-6)).weights(found)[0, 0] == 1
    assert BlackScholes(Pricing(choice="softmin", kappa=0)).weights(found).tolist() == [[1, 0]]


def test_the_released_density_does_not_follow_the_scores():
    generator = torch.Generator().manual_seed(0)
    scores = 15 + 20 * torch.rand(1, 4000, 2, generator=generator, dtype=torch.float64)
    density = BlackScholes(Pricing(price="released-density")).weights(step(20, scores)).argmax(1)
    wanted = scores[0].argmin(1)
    assert abs(float((density == wanted).double().mean()) - 0.5) < 0.05
    assert bool((BlackScholes().weights(step(20, scores)).argmax(1) == wanted).all())


def test_linear_shares():
    assert Linear().weights(step(0, count=3)).tolist() == [pytest.approx([1 / 3] * 3)]
    with pytest.raises(InputError, match="shares"):
        Linear((0.5, 0.5)).weights(step(0, count=3))
    for shares in ((0.5, 0.6), (-0.5, 1.5)):
        with pytest.raises(InputError, match="shares"):
            Linear(shares)


def test_brackets_ask_for_policies():
    assert parse_prompt("a [red|blue] car") == (["a red car", "a blue car"], Alternating())
    assert parse_prompt("a [cat:dog:0.3]") == (["a cat", "a dog"], StepSwitch((0.3,)))
    assert parse_prompt("a car") == (["a car"], None)
    for bad in ("a [red] car", "[a|b] [c|d]", "a [cat:dog:2]", "a ]car", "a [cat:dog:x]"):
        with pytest.raises(InputError, match=r"\["):
            parse_prompt(bad)


def test_refused_settings():
    for settings in ({"strike": 0}, {"window": 1}, {"kappa": -1}):
        with pytest.raises(InputError, match=next(iter(settings))):
            Pricing(**settings)
    with pytest.raises(InputError, match="strike"):
        BlackScholes(strikes={"a": 0.0})
    with pytest.raises(InputError, match="starts"):
        StepSwitch((0.5, 0.2))
