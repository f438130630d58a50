"""Masks and penalties against the numbers of the definition."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.ecodiff.hard_concrete import hard_concrete, mask_of, penalty, prob_kept, prob_whole

F64 = torch.float64


@pytest.mark.parametrize(
    ("logit", "u", "eps", "value"),
    [
        (3, 0, 0.5, 0.989738),
        (3, 0.25, 0.5, 1.0),
        (0, 0, 0.5, 0.152258),
        (0, 0.25, 0.5, 0.320980),
        (0, 0.5, 0.5, 0.5),
        (0, 0.5, 1e-8, 0.5),
        (0, 0.25, 1e-8, 0.152258),
        (0, 0.25, 0.1, 0.206703),
        (3, 0, 0.1, 0.708561),
        (3, 0.25, 1e-8, 0.989738),
        (-3, 0.5, 0.1, 0.0),
    ],
)
def test_value_of_a_mask(logit, u, eps, value):
    found = hard_concrete(torch.tensor([logit], dtype=F64), torch.tensor([u], dtype=F64), eps)
    assert float(found) == pytest.approx(value, abs=1e-6)


def test_probabilities_of_zero_and_one():
    logits = torch.tensor([3.0, 2.5, 0.0, -3.0], dtype=F64)
    expected = torch.tensor([0.993242, 0.988907, 0.879770, 0.267029], dtype=F64)
    torch.testing.assert_close(prob_kept(logits), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([0.732971, 0.120230, 0.006758], dtype=F64)
    torch.testing.assert_close(prob_whole(logits[[0, 2, 3]]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("eps", "mean"), [(1e-8, 0.93196), (0.5, 0.99983)])
def test_mean_of_a_mask(eps, mean):
    drawn = mask_of(torch.full((1_500_000,), 3.0), "hard_concrete", eps, torch.Generator().manual_seed(0))
    assert float(drawn.double().mean()) == pytest.approx(mean, abs=3e-4)


def test_probabilities_are_those_of_the_draws():
    drawn = mask_of(torch.zeros(1_000_000), "hard_concrete", 1e-8, torch.Generator().manual_seed(1))
    assert float((drawn > 0).double().mean()) == pytest.approx(0.879770, abs=2e-3)
    assert float((drawn == 1).double().mean()) == pytest.approx(0.120230, abs=2e-3)


def test_penalties():
    three = [torch.full((10,), 3.0, dtype=F64)]
    assert float(penalty(three, "l1")) == pytest.approx(3.0)
    assert float(penalty(three, "l2")) == pytest.approx(0.948683, abs=1e-6)
    assert float(penalty(three, "l1", bounded=True)) == pytest.approx(0.900250, abs=1e-6)
    assert float(penalty(three, "l0")) == pytest.approx(9.932420, abs=1e-5)
    assert float(penalty(three, "l1", mean=False)) == pytest.approx(30.0)
    uneven = [torch.ones(2, dtype=F64), torch.full((6,), 4.0, dtype=F64)]
    assert float(penalty(uneven, "l1")) == pytest.approx(2.5), "layers weigh the same whatever their size"


def test_raw_penalty_stops_at_zero_and_bounded_goes_on():
    low = torch.tensor([-1.0], dtype=F64, requires_grad=True)
    (raw,) = torch.autograd.grad(penalty([low], "l1"), low)
    (bounded,) = torch.autograd.grad(penalty([low], "l1", bounded=True), low)
    assert float(raw) == -1.0
    assert float(bounded) > 0.05


def test_other_kinds_draw_nothing():
    logits = torch.tensor([-1.0, 0.0, 2.0])
    assert mask_of(logits, "threshold").tolist() == [0, 0, 1]
    assert mask_of(logits, "none").tolist() == [1, 1, 1]
    assert mask_of(logits, "binary") is logits
    torch.testing.assert_close(
        mask_of(logits, "sigmoid"), torch.tensor([0.26894, 0.5, 0.88080]), atol=1e-5, rtol=0
    )
    with pytest.raises(InputError, match="eps"):
        hard_concrete(logits, torch.zeros(3), 0.0)
