"""First-hitting and ancestral sampling: times, orders, and the distribution of samples."""

from itertools import permutations, product

import pytest
import torch
from noiseworks.core.discrete import cosine, geometric, linear
from noiseworks.core.errors import InputError
from noiseworks.first_hitting.ancestral import AncestralSettings, ancestral_sample, expected_calls
from noiseworks.first_hitting.denoisers import from_callable
from noiseworks.first_hitting.hitting import hitting_times, reveal_counts, time_of
from noiseworks.first_hitting.sampling import Settings, fhs_sample
from scipy.stats import chisquare, kstest

MASK = 3


def table_denoiser(length: int = 3, vocabulary: int = 3, seed: int = 0):
    """A denoiser whose output is another random table for every canvas."""
    generator = torch.Generator().manual_seed(seed)
    tables = {
        canvas: torch.randn(length, vocabulary, generator=generator, dtype=torch.float64)
        for canvas in product(range(vocabulary + 1), repeat=length)
    }

    def function(tokens, times):
        return torch.stack([tables[tuple(row)] for row in tokens.tolist()])

    return from_callable(function, MASK), tables


def pair_denoiser():
    """Two correlated bits: diagonal .45, off-diagonal .05, exact conditionals; [MASK] is id 2."""

    def function(tokens, times):
        other = tokens.flip(1)
        p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], dtype=torch.float64)
        return p[other].log()

    return from_callable(function, 2)


def variation_of_pairs(tokens: torch.Tensor) -> float:
    joint = torch.tensor([0.45, 0.05, 0.05, 0.45], dtype=torch.float64)
    found = (2 * tokens[:, 0] + tokens[:, 1]).bincount(minlength=4).double() / len(tokens)
    return float((found - joint).abs().sum() / 2)


def masks(rows: int, length: int, mask: int = MASK) -> torch.Tensor:
    return torch.full((rows, length), mask)


def test_mean_times_of_the_linear_schedule():
    times = hitting_times(4, batch=200_000, generator=torch.Generator().manual_seed(0))
    assert times.mean(dim=0).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=2e-3)


def constant_denoiser(p: torch.Tensor):
    """A denoiser that says the same of every position of every canvas."""
    return from_callable(lambda tokens, times: p.log().expand(*tokens.shape, -1), MASK)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_from_the_tempered_distribution(temperature):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    settings = Settings(MASK, temperature=temperature)
    found = fhs_sample(constant_denoiser(p), masks(8000, 1), settings, seeds=range(8000)).tokens
    expected = p ** (1 / temperature)
    counts = found.flatten().bincount(minlength=3)
    assert chisquare(counts, 8000 * expected / expected.sum()).pvalue > 1e-3


def test_every_block_has_a_clock_of_its_own():
    settings = Settings(MASK, block_length=2)
    denoiser = constant_denoiser(torch.full((3,), 1 / 3, dtype=torch.float64))
    times = fhs_sample(denoiser, masks(2000, 4), settings, seeds=range(2000)).times
    first, second = times[:, :2].amax(1), times[:, 2:].amax(1)
    assert abs(float(torch.stack([first, second]).corrcoef()[0, 1])) < 0.1
    assert first.mean() == pytest.approx(float(second.mean()), abs=0.03)


@pytest.mark.parametrize("schedule", [linear(), cosine()])
def test_unordered_times_are_uniform_in_the_masked_share(schedule):
    times = hitting_times(5, schedule, 4000, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    any_one = times.gather(1, torch.randint(5, (4000, 1), generator=generator))
    assert kstest(schedule.mask_prob(any_one).flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("schedule", [linear(), cosine(), geometric()])
def test_time_of_inverts_the_schedule(schedule):
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(time_of(schedule, schedule.mask_prob(times)), times, atol=1e-9)


def test_reveal_counts_sum_up():
    assert reveal_counts(10, 4) == [3, 2, 3, 2]
    for masked in range(1, 40):
        for steps in range(1, masked + 1):
            assert sum(reveal_counts(masked, steps)) == masked
    with pytest.raises(InputError):
        reveal_counts(4, 5)


def test_order_of_reveals_is_a_uniform_permutation():
    denoiser = from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 3), MASK)
    sample = fhs_sample(denoiser, masks(12_000, 4), Settings(MASK), seeds=range(12_000))
    order = sample.times.argsort(dim=1, descending=True)
    codes = {order: i for i, order in enumerate(permutations(range(4)))}
    counts = torch.tensor([codes[tuple(row)] for row in order.tolist()]).bincount(minlength=24)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert sample.calls == 4


def test_exact_sampler_has_the_enumerated_distribution():
    denoiser, tables = table_denoiser()
    exact = torch.zeros(3, 3, 3, dtype=torch.float64)
    for order in permutations(range(3)):
        for text in product(range(3), repeat=3):
            canvas, p = [MASK] * 3, 1.0
            for place in order:
                p *= float(tables[tuple(canvas)].softmax(-1)[place, text[place]])
                canvas[place] = text[place]
            exact[text] += p / 6
    rows = 60_000
    for sample in (
        fhs_sample(denoiser, masks(rows, 3), Settings(MASK), seeds=range(rows)).tokens,
        ancestral_sample(
            denoiser,
            masks(rows // 4, 3),
            AncestralSettings(MASK, 512, lazy=True, cache=False),
            generator=torch.Generator().manual_seed(0),
        ).tokens,
    ):
        codes = (sample * torch.tensor([9, 3, 1])).sum(dim=1)
        # 512 steps leave a bias of about 1 / 512; the test of 15,000 samples cannot see it.
        assert (
            chisquare(codes.bincount(minlength=27).numpy(), (exact.flatten() * len(sample)).numpy()).pvalue
            > 1e-3
        )


def test_total_variation_on_two_correlated_bits():
    denoiser, rows = pair_denoiser(), 40_000
    exact = fhs_sample(denoiser, masks(rows, 2, 2), Settings(2), seeds=range(rows))
    assert variation_of_pairs(exact.tokens) < 0.01
    one = fhs_sample(denoiser, masks(rows, 2, 2), Settings(2, "parallel", 1), seeds=range(rows))
    assert variation_of_pairs(one.tokens) == pytest.approx(0.4, abs=0.01)
    assert one.calls == 1
    settings = Settings(2, "predictor_corrector", 1)
    corrected = fhs_sample(denoiser, masks(rows, 2, 2), settings, seeds=range(rows))
    assert variation_of_pairs(corrected.tokens) < 0.01
    assert corrected.calls == 2


@pytest.mark.parametrize("steps", [4, 16])
@pytest.mark.parametrize("lazy", [False, True])
def test_ancestral_error_on_two_correlated_bits(steps, lazy):
    settings = AncestralSettings(2, steps, eps=1e-9, lazy=lazy)
    generator = torch.Generator().manual_seed(3)
    # A batch shares its cached output only while none of its rows changes, so rows are independent all the same.
    sample = ancestral_sample(pair_denoiser(), masks(40_000, 2, 2), settings, generator=generator)
    assert variation_of_pairs(sample.tokens) == pytest.approx(0.4 / steps, abs=0.01)


def test_parallel_with_a_call_a_token_is_the_exact_sampler():
    denoiser, _ = table_denoiser()
    exact = fhs_sample(denoiser, masks(50, 3), Settings(MASK), seeds=range(50))
    for variant in ("parallel", "extrapolate", "predictor_corrector"):
        other = fhs_sample(denoiser, masks(50, 3), Settings(MASK, variant, 3), seeds=range(50))
        assert torch.equal(other.tokens, exact.tokens)
        assert other.calls == 3


def test_batches_equal_single_rows_with_different_numbers_of_masks():
    denoiser, _ = table_denoiser()
    tokens = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 1, 2], [2, 3, 1]])
    for settings in (Settings(MASK), Settings(MASK, "parallel", 2), Settings(MASK, "predictor_corrector", 1)):
        batch = fhs_sample(denoiser, tokens, settings, seeds=[5, 6, 7, 8])
        for row in range(4):
            alone = fhs_sample(denoiser, tokens[row : row + 1], settings, seeds=[5 + row])
            assert torch.equal(alone.tokens[0], batch.tokens[row])
            assert torch.equal(alone.times[0].nan_to_num(-1), batch.times[row].nan_to_num(-1))
    given = tokens != MASK
    assert torch.equal(batch.tokens[given], tokens[given])


def test_time_conditioned_models_get_the_hitting_times():
    seen = []

    def function(tokens, times):
        seen.append(times)
        return torch.zeros(*tokens.shape, 3)

    settings = Settings(MASK, takes_time=True, schedule=cosine())
    sample = fhs_sample(from_callable(function, MASK), masks(2, 5), settings, seeds=[1, 2])
    assert (
        torch.allclose(
            torch.stack(seen), sample.times.sort(dim=0).values.sort(dim=1, descending=True).values.T
        )
        or (torch.stack(seen).diff(dim=0) < 0).all()
    )
    assert len(seen) == 5


def test_blocks_are_finished_one_after_the_other():
    denoiser = from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 3), MASK)
    canvases = []

    def watched(tokens, times, positions):
        canvases.append(tokens.clone())
        return denoiser(tokens, times, positions)

    fhs_sample(watched, masks(3, 8), Settings(MASK, block_length=4), seeds=[1, 2, 3])
    for canvas in canvases:
        started = (canvas[:, 4:] != MASK).any(dim=1)
        assert not (started & (canvas[:, :4] == MASK).any(dim=1)).any()


def test_confidence_and_left_to_right_orders():
    def function(tokens, times):
        logits = torch.zeros(*tokens.shape, 3)
        logits[..., 0] = torch.arange(tokens.shape[1]) * 2.0
        return logits

    canvases = []
    inner = from_callable(function, MASK)

    def watched(tokens, times, positions):
        canvases.append((tokens[0] != MASK).tolist())
        return inner(tokens, times, positions)

    fhs_sample(watched, masks(1, 4), Settings(MASK, order="confidence", temperature=0.0), seeds=[0])
    assert canvases[1:] == [
        [False, False, False, True],
        [False, False, True, True],
        [False, True, True, True],
    ]
    canvases.clear()
    fhs_sample(watched, masks(1, 4), Settings(MASK, order="left_to_right"), seeds=[0])
    assert canvases[1] == [True, False, False, False]


def test_network_calls_of_the_cached_baseline():
    assert expected_calls(1024, 1024) == pytest.approx(647.5, abs=0.1)
    assert expected_calls(1024, 10_000) == pytest.approx(973, abs=0.5)
    assert expected_calls(128, 1000) == pytest.approx(120.2, abs=0.1)
    denoiser = from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 3), MASK)
    settings = AncestralSettings(MASK, 200)
    calls = [
        ancestral_sample(
            denoiser, masks(1, 16), settings, generator=torch.Generator().manual_seed(seed)
        ).calls
        for seed in range(30)
    ]
    assert sum(calls) / 30 == pytest.approx(expected_calls(16, 200), abs=0.6)


def test_nothing_to_do_returns_the_input():
    denoiser = from_callable(lambda tokens, times: torch.zeros(*tokens.shape, 3), MASK)
    tokens = torch.tensor([[0, 1, 2]])
    sample = fhs_sample(denoiser, tokens, Settings(MASK), seeds=[0])
    assert torch.equal(sample.tokens, tokens)
    assert sample.calls == 0


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "exact", "steps": 2},
        {"variant": "other"},
        {"order": "other"},
        {"method": "other"},
        {"steps": 0, "variant": "parallel"},
        {"temperature": -1.0},
        {"block_length": 0},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(InputError):
        Settings(MASK, **options)


def test_time_conditioned_ancestral_sampling_cannot_cache():
    with pytest.raises(InputError, match="cache"):
        AncestralSettings(MASK, takes_time=True)
