"""Categorical sampling: the closed form of the truncation, its figures, and draws against probabilities."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec
from noiseworks.first_hitting import Settings, fhs_sample, from_callable
from noiseworks.first_hitting.categorical import (
    _SHORT,
    CORRECT,
    _invert,
    categorical,
    effective_temperature,
    entropy,
    gumbel_bound,
    truncated_probs,
)
from scipy.stats import chisquare

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)


def ancestral(mu: torch.Tensor, delta: float, bound: float) -> tuple[float, torch.Tensor]:
    """Return the reveal probability relative to δ, and the distribution of what is revealed."""
    drawn = truncated_probs(torch.cat([delta * mu, torch.tensor([1 - delta], dtype=torch.float64)]), bound)[
        :-1
    ]
    return float(drawn.sum() / delta), drawn / drawn.sum()


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.bfloat16, 5.5432), (torch.float16, 7.6244), (torch.float32, 16.6355), (torch.float64, 36.7368)],
)
def test_largest_gumbel_of_each_type(dtype, bound):
    assert gumbel_bound(dtype) == pytest.approx(bound, abs=5e-5)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (3, (0.541784, 0.305482, 0.130190, 0.022543)),
        (2, (0.591480, 0.303124, 0.099660, 0.005735)),
        (1, (0.677534, 0.276025, 0.046302, 0.000139)),
        (0, (0.803948, 0.190419, 0.005633, 0.0)),
    ],
)
def test_truncated_distribution(bound, expected):
    found = truncated_probs(P, bound)
    assert found.tolist() == pytest.approx(expected, abs=6e-7)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_truncated_distribution_against_simulation():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(400_000, 4, generator=generator, dtype=torch.float64) * math.exp(-math.exp(-1.0))
    drawn = (P.log() - (-uniform.log()).log()).argmax(dim=1)
    expected = truncated_probs(P, 1.0) * len(drawn)
    assert chisquare(drawn.bincount(minlength=4).numpy(), expected.numpy()).pvalue > 1e-3


def test_truncated_race_draws_the_closed_form():
    rows, generator = P.log().float().expand(40_000, 4), torch.Generator().manual_seed(0)
    for bound in (1.0, 3.0, 40.0):
        drawn = categorical(rows, "gumbel_trunc", generator=generator, bound=bound)
        expected = truncated_probs(P, bound) * len(drawn)
        assert chisquare(drawn.bincount(minlength=4).numpy(), expected.numpy()).pvalue > 1e-3
    canvas = torch.full((2000, 1), 4)
    denoiser = from_callable(lambda tokens, times: P.log().expand(len(tokens), 1, 4), 4)
    found = fhs_sample(denoiser, canvas, Settings(4, method="gumbel_trunc", bound=1.0), generator=generator)
    expected = truncated_probs(P, 1.0) * len(canvas)
    assert chisquare(found.tokens[:, 0].bincount(minlength=4).numpy(), expected.numpy()).pvalue > 1e-3


def test_no_truncation_is_no_change():
    assert truncated_probs(P, 40.0).tolist() == pytest.approx(P.tolist(), abs=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(truncated_probs(P[order], 2.0), truncated_probs(P, 2.0)[order])
    assert float(truncated_probs(torch.tensor([0.0, 1.0]), 1.0)[0]) == 0


@pytest.mark.parametrize(
    ("delta", "ratio", "conditional"),
    [
        (1e-5, 0.97671, (0.50586, 0.30111, 0.14759, 0.04544)),
        (1e-6, 0.80574, (0.55081, 0.30524, 0.12512, 0.01884)),
        (1e-7, 0.19574, (0.77544, 0.21015, 0.01441, 0.0)),
    ],
)
def test_ancestral_step_in_float32(delta, ratio, conditional):
    found, tokens = ancestral(P, delta, gumbel_bound(torch.float32))
    assert found == pytest.approx(ratio, abs=2e-4)
    assert tokens.tolist() == pytest.approx(conditional, abs=2e-4)


def test_entropy_of_zipf_tokens_falls_with_the_step():
    mu = 1 / torch.arange(1, 50_258, dtype=torch.float64)
    mu /= mu.sum()
    assert entropy(mu) == pytest.approx(7.565874, abs=1e-6)
    bound = gumbel_bound(torch.float32)
    for delta, expected in ((0.1, 7.432253), (0.01, 6.673069), (0.001, 5.319450), (0.0001, 3.907300)):
        assert entropy(ancestral(mu, delta, bound)[1]) == pytest.approx(expected, rel=1e-4)
    assert entropy(truncated_probs(mu, bound)) == pytest.approx(7.551904, abs=2e-5)
    assert ancestral(mu, 0.01, bound)[0] == pytest.approx(0.842397, abs=1e-4)


def test_effective_temperature_falls_with_the_bound():
    assert effective_temperature(P, 40.0) == pytest.approx(1, abs=1e-6)
    temperatures = [effective_temperature(P, bound) for bound in (3.0, 2.0, 1.0)]
    assert temperatures == sorted(temperatures, reverse=True)
    # The minimum of KL(π' || softmax(log π / T)) by brute force.
    target = truncated_probs(P, 2.0)
    grid = torch.linspace(0.3, 1.2, 9001, dtype=torch.float64)
    model = torch.log_softmax(P.log()[None] / grid[:, None], dim=1)
    best = float(grid[(target * (target.log() - model)).sum(dim=1).argmin()])
    assert effective_temperature(P, 2.0) == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("method", CORRECT)
@pytest.mark.parametrize("source", ["generator", "keys"])
def test_correct_methods_draw_the_distribution(method, source):
    rows = P.log().float().expand(40_000, 4)
    randomness = (
        {"generator": torch.Generator().manual_seed(1)}
        if source == "generator"
        else {"keys": SeedSpec(1).keys(range(len(rows)))}
    )
    drawn = categorical(rows, method, **randomness)
    assert chisquare(drawn.bincount(minlength=4).numpy(), (P * len(drawn)).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 257, _SHORT + 5])
def test_blocks_of_sums_find_the_class_of_the_plain_cumulative_sum(classes):
    """Whole numbers as weights and uniforms of few bits make every sum exact, ends of classes included."""
    generator = torch.Generator().manual_seed(0)
    rows = 400 if classes < _SHORT else 40
    weights = torch.randint(4, (rows, classes), generator=generator)
    weights[:, int(torch.randint(classes, (1,), generator=generator))] += 1
    total = weights.sum(dim=1, keepdim=True)
    steps = torch.cat([torch.randint(1024, (rows, 1), generator=generator)[:-2], torch.tensor([[0], [1023]])])
    expected = [
        next(v for v in range(classes) if int(row[: v + 1].sum()) * 1024 > int(step) * int(mass))
        for row, step, mass in zip(weights, steps, total, strict=True)
    ]
    for dtype in (torch.float32, torch.float64):
        found = _invert(weights.to(dtype), steps.double() / 1024)
        assert found.tolist() == expected


@pytest.mark.parametrize("classes", [37, _SHORT + 37])
def test_the_largest_uniform_does_not_pass_the_last_class_of_a_positive_weight(classes):
    weights = torch.rand(200, classes, generator=torch.Generator().manual_seed(0))
    weights[:, 20:] = 0
    uniform = torch.full((200, 1), 1 - 2.0**-53, dtype=torch.float64)
    assert (_invert(weights, uniform) == 19).all()
    weights[:, :5] = 0
    assert (_invert(weights, torch.zeros(200, 1, dtype=torch.float64)) == 5).all()


def test_float32_race_loses_rare_tokens_as_the_closed_form_says():
    mu = 1 / torch.arange(1, 513, dtype=torch.float64)
    mu /= mu.sum()
    rows = mu.log().float().expand(2000, -1)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(512, dtype=torch.long)
    for _ in range(20):
        counts += categorical(rows, "gumbel16", generator=generator).bincount(minlength=512)
    tail = slice(100, None)
    assert counts[tail].sum() / counts.sum() < 0.8 * mu[tail].sum()


def test_temperature_zero_takes_the_likeliest_and_half_precision_is_cast():
    rows = torch.tensor([[0.0, 2.0, 1.0]])
    assert categorical(rows, temperature=0.0).tolist() == [1]
    assert categorical(rows.half(), generator=torch.Generator().manual_seed(0)).shape == (1,)


def test_forbidden_classes_are_never_drawn():
    rows = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(2000, -1)
    for method in CORRECT:
        assert set(categorical(rows, method, generator=torch.Generator().manual_seed(0)).tolist()) == {1, 3}


@pytest.mark.parametrize("bad", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_bad_logits_are_refused(bad):
    with pytest.raises(InputError, match="row 0"):
        categorical(torch.tensor([bad]))


def test_bad_arguments_are_refused():
    for options in (
        {"method": "gumbel"},
        {"temperature": -1.0},
        {"method": "gumbel32", "keys": torch.zeros(1)},
    ):
        with pytest.raises(InputError):
            categorical(torch.zeros(1, 2), **options)
    with pytest.raises(InputError, match="distribution"):
        truncated_probs(torch.tensor([0.5, 0.6]), 1.0)
