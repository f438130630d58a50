"""The flipper and the loss against worked numbers, and who plays."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.image_tuning import denoising_delta, preference_link
from noiseworks.seppo import Objective, adaptive_flip, choose_opponent, seppo_loss

REFERENCE = 0.1500


def loss_of(winner, winner_reference, flip, kappa=1000.0):
    errors = torch.tensor([[winner, 0.1503]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[winner_reference, REFERENCE]], dtype=torch.float64)
    g = adaptive_flip(reference[:, 0] - errors.detach()[:, 0], Objective(flip=flip))
    values = seppo_loss(errors, reference, g, kappa).values
    return float(values.detach()), torch.autograd.grad(values.sum(), errors)[0][0].tolist()


@pytest.mark.parametrize(
    ("winner", "reference", "flip", "loss", "sign"),
    [
        (0.1000, 0.1010, "sign", 0.2410085, -1),
        (0.1000, 0.1010, "none", 0.2410085, -1),
        (0.1010, 0.1000, "sign", 1.5410085, 1),
        (0.1010, 0.1000, "indicator", 1.3132617, 0),
        (0.1010, 0.1000, "none", 1.1031860, -1),
    ],
)
def test_the_loss_and_where_it_pushes(winner, reference, flip, loss, sign):
    found, gradient = loss_of(winner, reference, flip)
    assert found == pytest.approx(loss, abs=5e-8)
    assert gradient[0] > 0
    assert (gradient[1] > 0) - (gradient[1] < 0) == sign


def test_a_tie_costs_ln_2_under_every_flip():
    errors = torch.tensor([[0.1, 0.15], [0.3, 0.2]])
    for flip in ("sign", "indicator", "none", "soft"):
        for tie in ("worse", "neither"):
            g = adaptive_flip(torch.zeros(2), Objective(flip=flip, tie=tie))
            found = seppo_loss(errors, errors, g, 1000.0).values
            assert torch.equal(found, torch.full((2,), 0.6931472)), (flip, tie)


def test_flips():
    gain = torch.tensor([0.002, 0.0, -0.002])
    expected = {
        ("sign", "worse"): [1, 1, -1],
        ("sign", "neither"): [1, 0, -1],
        ("indicator", "worse"): [1, 1, 0],
        ("indicator", "neither"): [1, 0, 0],
        ("none", "neither"): [1, 1, 1],
    }
    for (flip, tie), g in expected.items():
        assert adaptive_flip(gain, Objective(flip=flip, tie=tie)).tolist() == g
    soft = adaptive_flip(gain, Objective(flip="soft", softness=0.002))
    assert soft.tolist() == pytest.approx([0.7615942, 0, -0.7615942])


def test_without_flips_it_is_the_loss_of_pairs():
    errors, reference = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(0))
    found = seppo_loss(errors, reference, torch.ones(6), 30.0)
    pairs = preference_link(-denoising_delta(errors, reference), 30.0)
    torch.testing.assert_close(found.values, pairs, rtol=1e-6, atol=0)


def test_opponents_are_drawn_uniformly_from_all_checkpoints():
    drawn = torch.tensor([choose_opponent("all", 3, seed) for seed in range(3000)]).bincount(minlength=3)
    assert ((drawn - 1000.0).square() / 1000).sum() < 13.8  # chi-square with 2 degrees, 1 in 1,000
    assert {choose_opponent("all", 1, seed) for seed in range(50)} == {0}
    assert choose_opponent("initial", 5, 0) == 0
    assert choose_opponent("latest", 5, 0) == 4
    with pytest.raises(InputError, match="one of the checkpoints"):
        choose_opponent("all", 0, 0)


def test_input_is_refused():
    with pytest.raises(InputError, match="kappa"):
        seppo_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), 0.0)
