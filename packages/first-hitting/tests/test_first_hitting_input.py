"""Input at and over the edges: refused in one sentence, or exact where it is allowed."""

import math

import pytest
import torch
from noiseworks.core.discrete import MaskSchedule
from noiseworks.core.errors import InputError
from noiseworks.first_hitting import (
    AncestralSettings,
    Settings,
    ancestral_sample,
    elbo,
    fhs_sample,
    from_callable,
    time_free_loss,
    truncated_probs,
)
from noiseworks.first_hitting.categorical import CORRECT, categorical, effective_temperature, gumbel_bound
from noiseworks.first_hitting.hitting import hitting_times, key_uniform, next_log_share

MASK = 3


def flat_denoiser():
    return from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 3), MASK)


def falling() -> MaskSchedule:
    return MaskSchedule("falling", lambda t: 1 - t, lambda t: 1 / t)


def unfinished() -> MaskSchedule:
    return MaskSchedule("unfinished", lambda t: 0.5 * t, lambda t: 1 / t)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_p": math.nan}, "top_p must be"),
        ({"top_k": 0}, "top_k must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"steps": 1.5, "variant": "parallel"}, "steps must be"),
        ({"schedule": falling()}, "'falling' must increase"),
        ({"schedule": unfinished()}, "it ends at 0.5"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(options, words):
    with pytest.raises(InputError, match=words) as refused:
        Settings(MASK, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps must be"),
        ({"eps": 0.0}, "eps must be"),
        ({"eps": 1.0}, "eps must be"),
        ({"method": "gumbel"}, "method must be one of"),
        ({"final": "keep"}, "final must be one of"),
    ],
)
def test_bad_ancestral_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        AncestralSettings(MASK, **options)


def test_negative_mask_ids_are_refused():
    with pytest.raises(InputError, match="mask_id must be"):
        Settings(-1)


@pytest.mark.parametrize("probs", [[1.5, -0.5], [math.nan, 1.0], [0.0, 0.0], [[0.5, 0.5]], [0.2, 0.2]])
def test_what_is_no_distribution_is_refused(probs):
    with pytest.raises(InputError, match="one distribution"):
        truncated_probs(torch.tensor(probs), 1.0)


def test_other_arguments_out_of_range_are_refused():
    tokens = torch.tensor([[0, 1, MASK]])
    for call in (
        lambda: gumbel_bound(torch.int64),
        lambda: hitting_times(0),
        lambda: hitting_times(2, batch=0),
        lambda: hitting_times(2, falling()),
        lambda: time_free_loss(flat_denoiser(), tokens, MASK),
        lambda: elbo(flat_denoiser(), tokens, MASK),
        lambda: elbo(flat_denoiser(), tokens[:, :2], MASK, draws=0),
        lambda: fhs_sample(flat_denoiser(), tokens.double(), Settings(MASK), seeds=[0]),
        lambda: fhs_sample(flat_denoiser(), tokens, Settings(MASK, method="gumbel32"), seeds=[0]),
        lambda: categorical(torch.zeros(3)),
        lambda: categorical(torch.zeros(2, 0)),
    ):
        with pytest.raises(InputError):
            call()


def test_more_steps_than_masks_are_one_call_a_mask():
    sample = fhs_sample(
        flat_denoiser(), torch.full((2, 3), MASK), Settings(MASK, "parallel", 10), seeds=[0, 1]
    )
    assert sample.calls == 3
    assert not (sample.tokens == MASK).any()


def test_input_without_masks_comes_back_unchanged_from_the_baseline_too():
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]])
    for lazy in (False, True):
        sample = ancestral_sample(flat_denoiser(), tokens, AncestralSettings(MASK, 8, lazy=lazy))
        assert torch.equal(sample.tokens, tokens)
        assert (sample.calls, sample.draws) == (0, 0)


def test_clock_does_not_stand_still_for_many_masks():
    """u^(1/n) rounds to 1 in float32 for large n; in logarithms and float64 every reveal moves the clock."""
    n, uniform = torch.tensor([10**7]), torch.tensor([1 - 2.0**-20], dtype=torch.float64)
    assert float(uniform.float() ** (1 / n.float())) == 1
    moved = next_log_share(torch.zeros(1, dtype=torch.float64), n, uniform)
    assert float(moved) == pytest.approx(math.log1p(-(2.0**-20)) / 1e7, rel=1e-12)
    assert float(moved) < 0
    keys = torch.arange(50_000)
    drawn = key_uniform(keys)
    assert float(drawn.min()) > 0
    assert float(drawn.max()) <= 1
    assert torch.isfinite(drawn.log()).all()


@pytest.mark.parametrize("method", CORRECT)
def test_large_logits_do_not_overflow(method):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 7, generator=generator, dtype=torch.float64)
    drawn = [
        categorical(logits + shift, method, generator=torch.Generator().manual_seed(1))
        for shift in (0.0, 5000.0, -5000.0)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    single = categorical((logits + 200).float(), method, generator=torch.Generator().manual_seed(1))
    assert (single == drawn[0]).double().mean() > 0.99


@pytest.mark.parametrize("method", CORRECT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up_before_the_draw(method, dtype):
    """Draws equal those from the same values in float32: the tail is not rounded again."""
    logits = (4 * torch.randn(300, 50, generator=torch.Generator().manual_seed(0))).to(dtype)
    half, full = (
        categorical(rows, method, generator=torch.Generator().manual_seed(1))
        for rows in (logits, logits.float())
    )
    assert torch.equal(half, full)


def test_equal_generators_give_equal_samples():
    for settings in (Settings(MASK), Settings(MASK, method="gumbel32"), Settings(MASK, "parallel", 2)):
        first, second, other = (
            fhs_sample(
                flat_denoiser(),
                torch.full((8, 6), MASK),
                settings,
                generator=torch.Generator().manual_seed(seed),
            ).tokens
            for seed in (5, 5, 6)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def test_every_reveal_of_a_float32_step_is_rarer_by_the_closed_form():
    """Shares of reveals that happen at all, of Zipf tokens with V = 50,257."""
    mu = 1 / torch.arange(1, 50_258, dtype=torch.float64)
    mu /= mu.sum()
    for delta, ratio in ((0.01, 0.842397), (0.001, 0.639987), (0.0001, 0.438084)):
        classes = torch.cat([delta * mu, torch.tensor([1 - delta], dtype=torch.float64)])
        found = truncated_probs(classes, gumbel_bound(torch.float32))[:-1].sum() / delta
        assert float(found) == pytest.approx(ratio, rel=1e-4)
    assert effective_temperature(mu, gumbel_bound(torch.float32)) < 1
