"""What an interval says about a target, and what targets say about a claim."""

import pytest
from noiseworks.bench.claims import Ceiling, Floor, Target, at_least, at_most, no_worse
from noiseworks.bench.runner.judge import void_reason
from noiseworks.bench.runner.verdicts import Estimate, claim_verdict, no_effect_value, target_verdict
from noiseworks.core.errors import InputError


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


def test_helpers_state_what_a_target_promises():
    assert at_most("s", "a", "b", ratio=0.5) == Target("", "s", "a", "b", "ratio", 0.5, "lower")
    assert at_least("s", "a", "b", difference=0.1, name="x") == Target(
        "x", "s", "a", "b", "difference", 0.1, "higher"
    )
    assert no_worse("s", "a", ["b", "c"], by=0.02) == Target(
        "", "s", "a", ("b", "c"), "difference", -0.02, "higher", guard=True
    )
    assert no_worse("s", "a", "b", by=0.02, better="lower").threshold == 0.02
    for wrong in ({}, {"ratio": 1.0, "difference": 0.0}):
        with pytest.raises(InputError, match="either a ratio or a difference"):
            at_most("s", "a", "b", **wrong)
    with pytest.raises(InputError, match="at least 0"):
        no_worse("s", "a", "b", by=-1)


MEASURED = {
    "full": [
        {"success": [0.0, 1.0], "share": 2.0, "whole": 8.0},
        {"success": [1.0, 1.0], "share": 6.0, "whole": 8.0},
    ],
    "cond": [{"success": [0.0, 0.0]}, {"success": [1.0, 0.0]}],
}


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (Floor("full", "success", 0.75, "only {:.0%}"), None),
        (Floor("full", "success", 0.8, "only {:.0%}"), "only 75%"),
        (Floor("full", "success", 0.6, "a gain of {:.2f}", against="cond"), "a gain of 0.50"),
        (Floor("full", "share", 0.6, "only {:.0%} of it", over="whole"), "only 50% of it"),
        (Ceiling("cond", "success", 0.25, "already {:.0%}"), None),
        (Ceiling("cond", "success", 0.2, "already {:.0%}"), "already 25%"),
    ],
)
def test_preconditions_are_judged_on_means(condition, reason):
    assert void_reason((Floor("full", "success", 0.0, ""), condition), MEASURED) == reason


def test_precondition_without_its_metric_is_refused():
    with pytest.raises(InputError, match="a precondition needs share, which arm 'cond' lacks"):
        void_reason((Floor("cond", "share", 0.0, ""),), MEASURED)
