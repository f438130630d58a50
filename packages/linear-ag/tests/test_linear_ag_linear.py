"""LinearAG's estimator against least squares, known combinations and limiting cases."""

from itertools import pairwise

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.linear_ag import LinearCoefficients, LinearGuidance
from noiseworks.linear_ag.linear import (
    estimate_uncond,
    every_second_policy,
    fit_from_gram,
    gram_matrix,
    paper_policy,
    r2_of,
)
from noiseworks.linear_ag.policies import RunSettings

T = 5


def draws(seed, steps=T, batch=6, size=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, batch, size, generator=generator, dtype=torch.float64)


def test_the_papers_policies_cost_25_and_30():
    assert paper_policy(20) == "23" * 5 + "1" * 10
    assert every_second_policy(20) == "23" * 10
    coefficients = fit_from_gram(gram_matrix(draws(0, 20), draws(1, 20)), 20)
    assert LinearGuidance(coefficients=coefficients).nfe == 25
    assert LinearGuidance(coefficients=coefficients, actions=every_second_policy(20)).nfe == 30
    assert LinearGuidance(coefficients=coefficients).history == 10


def test_a_known_combination_is_recovered():
    cond, uncond = draws(2), draws(3)
    uncond[3] = 0.5 * cond[3] - 0.2 * cond[0] + 0.3 * uncond[1] + 0.1 * uncond[2]
    found = fit_from_gram(gram_matrix(cond, uncond), T, ridge=0.0)
    expected = torch.zeros(2, T, dtype=torch.float64)
    expected[0, 3], expected[0, 0], expected[1, 1], expected[1, 2] = 0.5, -0.2, 0.3, 0.1
    torch.testing.assert_close(found.beta_cond[3], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.beta_uncond[3], expected[1], rtol=0, atol=1e-6)
    assert float(found.r2[3]) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
def test_gram_solution_equals_least_squares_on_stacked_data(intercept):
    cond, uncond = draws(4), draws(5) + 0.5
    uncond = uncond + 0.8 * cond
    gram = sum(gram_matrix(cond[:, rows], uncond[:, rows]) for rows in (slice(0, 2), slice(2, 6)))
    found = fit_from_gram(gram, T, ridge=0.0, intercept=intercept)
    for k in range(T):
        columns = [*cond[: k + 1].flatten(1), *uncond[:k].flatten(1)]
        columns += [torch.ones_like(columns[0])] if intercept else []
        right = uncond[k].flatten()[:, None]
        solution = torch.linalg.lstsq(torch.stack(columns, dim=1), right).solution.flatten()
        beta = torch.cat([found.beta_cond[k, : k + 1], found.beta_uncond[k, :k]])
        if intercept:
            beta = torch.cat([beta, found.intercept[k : k + 1]])
        torch.testing.assert_close(beta, solution, rtol=0, atol=1e-8)
        residual = right.flatten() - torch.stack(columns, dim=1) @ solution
        assert float(found.r2[k]) == pytest.approx(float(1 - residual.square().sum() / right.square().sum()))


def test_first_step_has_one_coefficient_and_equal_predictions_reproduce():
    cond, uncond = draws(6), draws(7)
    found = fit_from_gram(gram_matrix(cond, uncond), T, ridge=0.0)
    assert float(found.beta_cond[0, 0]) == pytest.approx(
        float((cond[0] * uncond[0]).sum() / cond[0].square().sum())
    )
    assert not found.beta_uncond[0].any()
    same = fit_from_gram(gram_matrix(cond, cond), T)
    for k in range(T):
        estimate = estimate_uncond(same, k, cond[: k + 1], cond[:k])
        torch.testing.assert_close(estimate, cond[k], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_combined_in_float32(dtype):
    """Large coefficients that cancel: 40 e_c(2) - 39 e_c(1), of two predictions that hardly differ."""
    fitted = fit_from_gram(gram_matrix(draws(8), draws(9)), T)
    fitted.beta_cond[2], fitted.beta_uncond[2] = torch.zeros(2, T, dtype=torch.float64)
    fitted.beta_cond[2, 1], fitted.beta_cond[2, 2], fitted.beta_uncond[2, 1] = -39.03, 40.01, 0.13
    cond, uncond = draws(8).to(dtype), draws(9).to(dtype)
    cond[2] = cond[1] + 0.01 * cond[0]
    expected = -39.03 * cond[1].double() + 40.01 * cond[2].double() + 0.13 * uncond[1].double()
    found = estimate_uncond(fitted, 2, cond[:3], uncond[:2])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_regression_beats_copying_on_gaussian_data_and_on_held_out_runs():
    """Gaussian mixture data: both predictions depend on one state, so the past explains the difference.

    Four unit-variance components in 16 dimensions; the condition names one. The state follows a DDIM run with
    the exact noise predictions of mixture and component.
    """
    means = 0.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = 12
    levels = torch.linspace(0.02, 0.998, steps + 1, dtype=torch.float64).flip(0)  # sigma

    def predictions(x, sigma, label):
        alpha = (1 - sigma**2).sqrt()
        offsets = x[:, None] - alpha * means
        weights = torch.softmax(-offsets.square().sum(-1) / 2, dim=1)
        return sigma * offsets[torch.arange(len(x)), label], sigma * (weights[..., None] * offsets).sum(1)

    def runs(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 16, generator=generator, dtype=torch.float64)
        label = torch.arange(400) % 4
        pairs = []
        for now, after in pairwise(levels):
            cond, uncond = predictions(x, now, label)
            pairs.append((cond, uncond))
            eps = uncond + 2.0 * (cond - uncond)
            x0 = (x - now * eps) / (1 - now**2).sqrt()
            x = (1 - after**2).sqrt() * x0 + after * eps
        return gram_matrix(*(torch.stack(side) for side in zip(*pairs, strict=True)))

    found = fit_from_gram(runs(1), steps)
    missing, missing_by_copy = 1 - r2_of(found, runs(2)), 1 - fit_from_gram(runs(2), steps).r2_copy
    differing = missing_by_copy > 1e-3
    differing[0] = False  # the first step has one coefficient, which can do no more than scale
    assert int(differing.sum()) >= 3
    assert bool((missing[differing] < 0.7 * missing_by_copy[differing]).all())


def settings_of(**changes):
    base = {
        "num_steps": T,
        "guidance_scale": 7.5,
        "scheduler": "DDIM {}",
        "model": "UNet with 10 parameters",
        "checksum": 0.5,
        "sample_shape": (4, 8, 8),
        "uncond": torch.tensor([1.0, 2.0]),
    }
    return RunSettings(**{**base, **changes})


def test_coefficients_survive_saving_and_refuse_other_runs(tmp_path):
    fitted = fit_from_gram(gram_matrix(draws(8), draws(9)), T, settings=settings_of())
    fitted.save_pretrained(tmp_path / "coefs")
    loaded = LinearCoefficients.from_pretrained(tmp_path / "coefs")
    for name in ("beta_cond", "beta_uncond", "intercept", "r2", "r2_copy"):
        assert torch.equal(getattr(loaded, name), getattr(fitted, name))
    loaded.check(settings_of())
    loaded.check(settings_of(guidance_scale=None, uncond=None))
    for name, value in {
        "num_steps": 6,
        "guidance_scale": 5.0,
        "scheduler": "Euler {}",
        "model": "UNet with 11 parameters",
        "checksum": 0.6,
        "sample_shape": (4, 16, 16),
        "uncond": torch.tensor([1.0, 3.0]),
    }.items():
        with pytest.raises(InputError, match="fit again"):
            loaded.check(settings_of(**{name: value}))
    (tmp_path / "coefs" / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ArtifactError, match="corrupt"):
        LinearCoefficients.from_pretrained(tmp_path / "coefs")


def test_bad_linear_policies_are_refused():
    coefficients = fit_from_gram(gram_matrix(draws(8), draws(9)), T)
    for arguments in (
        {},
        {"coefficients": coefficients, "actions": "23"},
        {"coefficients": coefficients, "actions": "20200"},
    ):
        with pytest.raises(InputError):
            LinearGuidance(**arguments)
    with pytest.raises(InputError, match="ridge"):
        fit_from_gram(gram_matrix(draws(8), draws(9)), T, ridge=-1.0)
    with pytest.raises(InputError, match="does not belong"):
        fit_from_gram(torch.eye(7), T)
