"""First-hitting and fine ancestral sampling have one distribution: that of a source of text, exactly known."""

from functools import cache
from itertools import product

import pytest
import torch
from noiseworks.bench.testbeds.countdown.chain import MarkovText, make_chain
from noiseworks.first_hitting import AncestralSettings, Settings, ancestral_sample, fhs_sample
from noiseworks.first_hitting.higher_order import Memory, extrapolate
from scipy.stats import chi2, chi2_contingency, chisquare, ncx2

TOKENS, LENGTH, MASK = 3, 4, 3
LEVEL, ROWS = 1e-3, 4000


@cache
def source() -> MarkovText:
    return make_chain(TOKENS, seed=4, classes=7, exponent=1.2, floor=0.02)


def texts() -> torch.Tensor:
    return torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))


@cache
def perfect_denoiser():
    """Return the source's exact conditionals, looked up by canvas."""
    canvases = torch.tensor(list(product(range(TOKENS + 1), repeat=LENGTH)))
    table = source().conditionals(canvases, canvases != MASK).log()
    digits = (TOKENS + 1) ** torch.arange(LENGTH - 1, -1, -1)

    def denoise(tokens, times, positions):
        found = table[(tokens * digits).sum(dim=1)]
        return found.gather(1, positions.unsqueeze(-1).expand(-1, -1, TOKENS))

    return denoise


def counts(tokens: torch.Tensor) -> torch.Tensor:
    codes = (tokens * TOKENS ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    return codes.bincount(minlength=TOKENS**LENGTH)


def canvas(rows: int) -> torch.Tensor:
    return torch.full((rows, LENGTH), MASK)


@cache
def ancestral_counts() -> torch.Tensor:
    settings = AncestralSettings(MASK, 1024, method="gumbel64")
    generator = torch.Generator().manual_seed(0)
    return counts(ancestral_sample(perfect_denoiser(), canvas(ROWS), settings, generator=generator).tokens)


def p_value(found: torch.Tensor, p: torch.Tensor) -> float:
    """Return the p-value of counts under probabilities p; cells that expect fewer than five are one cell."""
    expected = found.sum() * p
    rare = expected < 5
    if bool(rare.any()):
        found = torch.cat([found[~rare], found[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return float(chisquare(found.numpy(), expected.numpy()).pvalue)


def test_first_hitting_and_ancestral_sampling_draw_from_the_source():
    """Chi-square tests of all 81 texts of four tokens at level 0.001, exact source against both samplers.

    First-hitting is tested with 40,000 samples, ancestral sampling (T = 1024, float64 Gumbel, every mask drawn at
    every step) with 4,000; its own error, two tokens in one step, has a probability of 6 / 1024. Power with 4,000
    samples, by the noncentral chi-square law: above 0.99 against next-token distributions at temperature 0.85.
    With 40,000 the same holds from 0.94 on. That two tokens a call are told apart is the next test.
    """
    p = source().log_likelihood(texts()).exp()
    exact = fhs_sample(perfect_denoiser(), canvas(10 * ROWS), Settings(MASK), seeds=range(10 * ROWS))
    hits = counts(exact.tokens)
    assert p_value(hits, p) > LEVEL
    assert p_value(ancestral_counts(), p) > LEVEL
    both = torch.stack([hits, ancestral_counts()])
    assert chi2_contingency(both[:, both.sum(dim=0) >= 55].numpy()).pvalue > LEVEL
    for rows, temperature in ((ROWS, 0.85), (10 * ROWS, 0.94)):
        colder = source().table ** (1 / temperature)
        other = MarkovText(colder / colder.sum(dim=1, keepdim=True), source().classes)
        shift = float((rows * (other.log_likelihood(texts()).exp() - p) ** 2 / p).sum())
        freedom = len(p) - 1
        assert ncx2.sf(chi2.ppf(1 - LEVEL, freedom), freedom, shift) > 0.99


def test_two_tokens_a_call_are_told_apart_from_the_source():
    p = source().log_likelihood(texts()).exp()
    drawn = {
        variant: counts(
            fhs_sample(perfect_denoiser(), canvas(ROWS), Settings(MASK, variant, 2), seeds=range(ROWS)).tokens
        )
        for variant in ("parallel", "predictor_corrector")
    }
    assert p_value(drawn["parallel"], p) < 1e-6
    # Two tokens a call, one of them redrawn with the other in sight: exact again.
    assert p_value(drawn["predictor_corrector"], p) > LEVEL


def test_coarse_ancestral_sampling_is_told_apart_too():
    settings = AncestralSettings(MASK, 4, method="gumbel64")
    generator = torch.Generator().manual_seed(1)
    found = ancestral_sample(perfect_denoiser(), canvas(ROWS), settings, generator=generator).tokens
    assert p_value(counts(found), source().log_likelihood(texts()).exp()) < 1e-6


def test_given_tokens_condition_the_rest_exactly():
    """Infilling: with the second and last token given, the others follow the source's conditional law."""
    rows = 20_000
    given = torch.tensor([MASK, 2, MASK, 0]).expand(rows, -1)
    found = fhs_sample(perfect_denoiser(), given, Settings(MASK), seeds=range(rows)).tokens
    assert (found[:, [1, 3]] == torch.tensor([2, 0])).all()
    fits = (texts()[:, 1] == 2) & (texts()[:, 3] == 0)
    p = source().log_likelihood(texts()).exp()[fits]
    assert p_value(counts(found)[fits], p / p.sum()) > LEVEL


def test_lazy_and_full_ancestral_sampling_have_one_distribution():
    """Two-sample chi-square at T = 3, where both are far from the source, so that a wrong one would show."""
    found = []
    for lazy in (False, True):
        settings = AncestralSettings(MASK, 3, method="gumbel64", lazy=lazy)
        generator = torch.Generator().manual_seed(2)
        sample = ancestral_sample(perfect_denoiser(), canvas(20_000), settings, generator=generator)
        found.append(counts(sample.tokens))
    both = torch.stack(found)
    assert chi2_contingency(both[:, both.sum(dim=0) >= 10].numpy()).pvalue > LEVEL


def test_block_by_block_sampling_follows_the_source_too():
    """With exact conditionals any order of blocks gives the source, and each block runs its own clock."""
    settings = Settings(MASK, block_length=2)
    sample = fhs_sample(perfect_denoiser(), canvas(20_000), settings, seeds=range(20_000))
    assert p_value(counts(sample.tokens), source().log_likelihood(texts()).exp()) > LEVEL
    # The later of two reveals in a block stands at the smaller of two uniforms, mean 1/3; the first at 2/3.
    for block in (sample.times[:, :2], sample.times[:, 2:]):
        ordered = block.sort(dim=1).values.mean(dim=0)
        assert ordered.tolist() == pytest.approx([1 / 3, 2 / 3], abs=0.01)


def test_extrapolation_is_the_written_out_formula():
    generator = torch.Generator().manual_seed(0)
    before, now = torch.randn(2, 1, 4, TOKENS, generator=generator, dtype=torch.float64).log_softmax(-1)
    rows, positions = torch.tensor([0]), torch.tensor([[2, 0, 3]])
    memory = Memory(before, torch.tensor([6]), torch.tensor([True]))
    masks = torch.tensor([4])
    given = now[:, positions[0]]
    found = extrapolate(given, positions, rows, masks, memory)[0]
    for i, place in enumerate(positions[0].tolist()):
        factor = min(1.0, i / (6 - 4))
        expected = now[0, place] + factor * (now[0, place] - before[0, place])
        assert torch.allclose(found[i], expected.log_softmax(-1), atol=1e-12)
    unknown = Memory(before, torch.tensor([6]), torch.tensor([False]))
    for first in (None, unknown):
        assert torch.allclose(extrapolate(given, positions, rows, masks, first), given, atol=1e-12)
    forbidden = given.clone()
    forbidden[..., 1] = -torch.inf
    kept = extrapolate(forbidden, positions, rows, masks, memory)
    assert (kept[..., 1] == -torch.inf).all()
    assert torch.allclose(kept.exp().sum(-1), torch.ones(1, 3, dtype=torch.float64))
