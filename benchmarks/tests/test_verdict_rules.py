"""What an interval says about a target, and what targets say about a claim."""

import pytest
from noiseworks.bench.claims import Target
from noiseworks.bench.runner.judge import Estimate, claim_verdict, no_effect_value, target_verdict


def target(kind="difference", threshold=2.0, better="higher", **options):
    return Target("t", "m", "a", "b", kind, threshold, better, **options)


def interval(low, high):
    return Estimate((low + high) / 2, low, high, seeds=3, observations=30)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.0, 3.0, "holds"),
        (1.9, 3.0, "partly"),
        (0.1, 1.0, "partly"),
        (-0.1, 3.0, "no effect"),
        (0.0, 0.0, "no effect"),
        (-3.0, -0.1, "worse"),
    ],
)
def test_effect_where_higher_is_better(low, high, verdict):
    assert target_verdict(target(), interval(low, high)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.5, 0.75, "holds"), (0.5, 0.9, "partly"), (0.5, 1.1, "no effect"), (1.1, 1.2, "worse")],
)
def test_effect_of_a_ratio_where_lower_is_better(low, high, verdict):
    effect = target(kind="ratio", threshold=0.75, better="lower")
    assert target_verdict(effect, interval(low, high)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.5, "holds"), (-0.011, 0.5, "partly"), (-0.5, -0.011, "worse"), (-0.5, -0.01, "partly")],
)
def test_guard_asks_only_on_which_side_of_its_threshold_the_interval_lies(low, high, verdict):
    assert target_verdict(target(threshold=-0.01, guard=True), interval(low, high)) == verdict


def test_no_effect_follows_the_kind_unless_it_is_stated():
    assert no_effect_value(target()) == 0.0
    assert no_effect_value(target(kind="ratio")) == 1.0
    assert no_effect_value(target(no_effect=0.5)) == 0.5
    assert target_verdict(target(no_effect=2.5), interval(2.0, 2.4)) == "worse"


def test_a_threshold_that_nothing_has_to_pass_does_not_make_an_effect():
    assert target_verdict(target(threshold=-1.0), interval(-0.5, 0.5)) == "no effect"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("holds", "holds", "holds"), "holds"),
        (("partly", "holds", "worse"), "partly"),
        (("no effect", "holds", "holds"), "no effect"),
        (("worse", "holds", "holds"), "worse"),
        (("holds", "no effect", "holds"), "partly"),
        (("holds", "worse", "holds"), "partly"),
        (("holds", "holds", "worse"), "worse"),
        (("holds", "holds", "partly"), "partly"),
    ],
)
def test_claim_is_its_effect_unless_a_condition_spoils_it(verdicts, expected):
    targets = (target(), target(), target(guard=True))
    assert claim_verdict(targets, verdicts) == expected
