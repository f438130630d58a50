"""Labels and losses against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from noiseworks.kits.image_tuning import denoising_delta, preference_link, step_ratio_loss
from noiseworks.pso import RELEASED, Personal, offline_loss, pair_labels, personal_loss

SCRIPT = {"strength": 5.0, "down_weight": 0.1, "hold": 0.5}


def test_the_step_loss_and_its_bounds():
    h = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    for d, value in (((0.05, -0.02), 0.0297504), ((9, -9), 4.390e-05), ((-9, 9), 10.033579)):
        found = step_ratio_loss(torch.tensor([d], dtype=torch.float64), h, 50.0, 0.1)
        assert float(found) == pytest.approx(value, rel=1e-4)


def test_ties_prefer_neither_under_both_rules():
    rewards = torch.tensor([[[1.0, 0], [0, 1]], [[2, 2], [1, 2]], [[1, 1], [1, 1]]])
    assert pair_labels(rewards).tolist() == [[0, 0], [1, -1], [0, 0]]
    many = rewards.repeat_interleave(200, 0)
    drawn = pair_labels(many, "random", torch.Generator().manual_seed(0)).view(3, 200, 2)
    assert sorted({tuple(row) for row in drawn[0].tolist()}) == [(-1, 1), (1, -1)]
    assert abs(float(drawn[0, :, 0].mean())) < 0.2
    assert sorted({tuple(row) for row in drawn[1].tolist()}) == [(0, 0), (1, -1)]
    assert drawn[2].abs().sum() == 0


def test_offline_loss_is_diffusion_dpo_at_gamma_1_and_the_anchor_adds():
    g = torch.Generator().manual_seed(0)
    errors, kept = torch.rand(2, 6, 2, generator=g, dtype=torch.float64)
    dpo = preference_link(-denoising_delta(errors, kept), 25.0)
    torch.testing.assert_close(offline_loss(errors, kept, kappa=25.0), dpo, rtol=1e-12, atol=0)
    w, other = errors.unbind(1)
    delta = (w - 0.3 * other) - (kept[:, 0] - 0.3 * kept[:, 1])
    expected = -F.logsigmoid(-25 * delta) + 0.2 * other
    found = offline_loss(errors, kept, kappa=25.0, gamma=0.3, anchor=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert offline_loss(errors, errors, kappa=25.0).tolist() == pytest.approx([math.log(2)] * 6)


def test_released_weights_cancel_the_class_images_and_ours_do_not():
    for errors, value in (((0.30, 0.50), 2.5), ((0.02, 0.50), 1.10)):
        pair = torch.tensor([errors], dtype=torch.float64, requires_grad=True)
        loss = personal_loss(pair, **SCRIPT)
        assert loss.item() == pytest.approx(value, abs=1e-12)
        assert loss.item() == pytest.approx(1 + 5 * errors[0], abs=1e-12)
        assert torch.autograd.grad(loss.sum(), pair)[0][0, 1] == 0
        ours = torch.autograd.grad(personal_loss(pair, **SCRIPT | {"hold": 0.1}).sum(), pair)[0]
        assert float(ours[0, 1]) == pytest.approx(-0.4)
    idle = torch.tensor([[0.01, 3.0]], dtype=torch.float64)
    assert float(personal_loss(idle, **SCRIPT)) == pytest.approx(1.5)
    assert RELEASED.degenerate
    assert not Personal().degenerate


def test_an_error_of_x0_over_the_squared_noise_is_the_error_of_the_noise():
    g = torch.Generator().manual_seed(1)
    z, noise, predicted = torch.randn(3, 5, 4, 8, 8, generator=g, dtype=torch.float64)
    for sigma in (14.6146, 1.6129, 0.0292):
        x0 = (z + sigma * noise) - sigma * predicted
        weighted = (x0 - z).square().flatten(1).mean(1) / sigma**2
        torch.testing.assert_close(
            weighted, (predicted - noise).square().flatten(1).mean(1), rtol=1e-9, atol=1e-12
        )
