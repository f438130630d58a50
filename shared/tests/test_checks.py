"""Boundary checks: what they let pass, and the sentence they refuse with."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noiseworks.core.checks import check_choice, check_finite, check_number, check_seed
from noiseworks.core.errors import InputError, NonFiniteError


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (2, {"low": 0, "high": 1}, "scale must be a number of at least 0 and of at most 1, got 2"),
        (0, {"low": 0, "low_open": True}, "scale must be a number above 0, got 0"),
        (1.0, {"high": 1, "high_open": True}, "scale must be a number below 1, got 1.0"),
        (1.5, {"integer": True}, "scale must be a whole number, got 1.5"),
        (math.nan, {}, "scale must be a number, got nan"),
        (math.inf, {"low": 0}, "scale must be a number of at least 0, got inf"),
        (True, {}, "scale must be a number, got True"),
        ("3", {}, "scale must be a number, got '3'"),
        (None, {"integer": True, "low": 1}, "scale must be a whole number of at least 1, got None"),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_sentence(value, bounds, message):
    with pytest.raises(InputError) as error:
        check_number("scale", value, **bounds)
    assert str(error.value) == message


@given(
    value=st.floats(-10, 10),
    low=st.floats(-10, 10),
    high=st.floats(-10, 10),
    opens=st.tuples(*[st.booleans()] * 2),
)
def test_numbers_pass_exactly_when_they_are_in_range(value, low, high, opens):
    inside = (low < value or (low == value and not opens[0])) and (
        value < high or (value == high and not opens[1])
    )
    try:
        check_number("x", value, low=low, high=high, low_open=opens[0], high_open=opens[1])
    except InputError:
        assert not inside
    else:
        assert inside


def test_whole_numbers_may_be_floats_without_fraction():
    check_number("n", 3.0, integer=True)
    check_number("n", 3, integer=True, low=3, high=3)


def test_choices():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(InputError, match="kind must be one of a, b, got 'c'"):
        check_choice("kind", "c", ("a", "b"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_tensors_stop_the_run_with_tensor_and_step(bad):
    check_finite("loss", torch.tensor(1.0))
    with pytest.raises(NonFiniteError, match=r"latents is not finite at step 7: .* shape \(2,\)"):
        check_finite("latents", torch.tensor([0.0, bad]), 7)
    with pytest.raises(NonFiniteError, match="loss is not finite: "):
        check_finite("loss", torch.tensor(bad))


def test_input_errors_are_value_errors():
    with pytest.raises(ValueError, match="must be"):
        check_number("x", -1, low=0)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1", float("nan")])
def test_seeds_that_a_generator_does_not_take_are_refused(seed):
    with pytest.raises(InputError, match=r"seed must be a whole number from 0 to 2\^63 - 1"):
        check_seed("seed", seed)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_seeds_that_are_allowed_are_taken_by_every_generator(seed):
    check_seed("seed", seed)
    np.random.default_rng(seed)
    torch.Generator().manual_seed(seed + 1000)
