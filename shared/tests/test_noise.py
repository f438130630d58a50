"""Noise: known answers of the engine, exactness at the tails, independence of batch and order."""

import math

import numpy as np
import pytest
import torch
from noiseworks.core import noise
from noiseworks.core.errors import InputError

MASK32 = 0xFFFFFFFF


def philox_in_python(counter, key):
    """Philox-4x32-10 in unbounded integers, one counter at a time."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK32, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK32,) * 4, (MASK32,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    as_numpy = (
        [np.array([c], dtype=np.uint64) for c in counter],
        [np.array([k], dtype=np.uint64) for k in key],
    )
    as_torch = [torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key]
    assert [int(w[0]) for w in noise.philox4x32(*as_numpy)] == list(expected)
    assert [int(w[0]) for w in noise.philox4x32(*as_torch)] == list(expected)
    assert philox_in_python(counter, key) == list(expected)


def test_split_mix_gives_the_published_known_answers():
    # The first three outputs of SplitMix64 seeded with 0; the state before output n is (n - 1) golden ratios.
    golden = 0x9E3779B97F4A7C15
    outputs = [noise.mix64(n * golden % 2**64) for n in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert noise.mix64(1234567) == 6457827717110365317


def test_the_key_of_a_sample_is_the_chained_hash_of_seed_id_and_stream():
    keys = noise.SeedSpec(seed=-1, stream=5).keys([0, 7, 2**40])
    expected = [noise.mix64(2**64 - 1, i, 5) for i in (0, 7, 2**40)]
    assert [int(k) % 2**64 for k in keys] == expected
    assert not set(expected) & {noise.mix64(2**64 - 1, i, 6) for i in (0, 7, 2**40)}


def test_keys_under_several_seeds_are_those_of_each_seed():
    seeds, ids = [0, 7, -3, 2**64 + 5, 2**62 - 1], [0, 1, 2, 9, 2**40]
    for stream in (0, 4):
        found = noise.seed_keys(seeds, ids, stream)
        for row, seed in zip(found, seeds, strict=True):
            assert torch.equal(row, noise.SeedSpec(seed, stream).keys(ids))
    assert noise.seed_keys([], ids).shape == (0, 5)
    assert noise.seed_keys([1, 2], []).shape == (2, 0)


def test_numpy_and_torch_engines_agree_word_for_word_also_above_32_bit_counters():
    keys = noise.SeedSpec(3).keys(range(5))
    first = 2**32 - 2
    counters = torch.arange(4) + first
    zero = torch.zeros_like(counters)
    k = keys[:, None]
    engine = noise.philox4x32(
        (counters & MASK32, counters >> 32, zero, zero), (k & MASK32, (k >> 32) & MASK32)
    )
    drawn = noise.words(keys, 16, counter0=first)
    assert torch.equal(drawn, torch.stack(engine, -1).flatten(1))
    key = int(keys[4]) % 2**64
    by_hand = philox_in_python(((first + 2) & MASK32, (first + 2) >> 32, 0, 0), (key & MASK32, key >> 32))
    assert drawn[4, 8:12].tolist() == by_hand


def test_words_do_not_depend_on_the_chunks_in_which_they_are_made(monkeypatch):
    keys = noise.SeedSpec(1).keys(range(3))
    whole = noise.words(keys, 70)
    monkeypatch.setattr(noise, "_CHUNK", 4)
    assert torch.equal(noise.words(keys, 70), whole)


def test_compiled_words_equal_the_numpy_words():
    keys = noise.SeedSpec(1).keys(range(3))
    compiled = torch.compile(noise.words, fullgraph=True, backend="eager")
    assert torch.equal(compiled(keys, 13, 2), noise.words(keys, 13, 2))


def test_uniforms_equal_those_of_triton_rand():
    key = torch.tensor([123])
    first_lanes = noise.uniform(key, (16,))[0, ::4].tolist()
    assert first_lanes == pytest.approx(
        [0.133895486594, 0.720700621605, 0.344584763050, 0.237513154745], abs=1e-12
    )
    assert int(noise.words(key, 1)) == 0x11237CDC
    extremes = noise.uniform_from_words(torch.tensor([0, 2**31 - 1, 2**31, MASK32]))
    assert extremes[[0, 3]].tolist() == [0.0, 0.0]
    assert 0.999 < extremes.max() < 1


def test_exponentials_are_exact_to_float32_precision_at_both_ends():
    extreme = [0, 1, 2, 1000, 2**30, 2**31 - 1, 2**31, 2**31 + 1, MASK32 - 1000, MASK32 - 1, MASK32]
    drawn = torch.tensor(extreme)
    exact = np.array([-math.log1p(-(w + 0.5) / 2**32) for w in extreme])
    assert np.allclose(noise.exponential_from_words(drawn).double().numpy(), exact, rtol=2e-7, atol=0)
    assert np.allclose(noise.exponential_from_words(drawn, torch.float64).numpy(), exact, rtol=1e-14, atol=0)
    assert exact[0] == pytest.approx(1.1642e-10, rel=1e-4)
    assert exact[-1] == pytest.approx(22.874, rel=1e-4)


def test_normals_are_box_muller_of_their_two_words():
    keys = noise.SeedSpec(9).keys([4])
    drawn = noise.words(keys, 8)[0].tolist()
    expected = []
    for w1, w2 in zip(drawn[::2], drawn[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log((w1 + 0.5) / 2**32)), 2 * math.pi * (w2 + 0.5) / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert noise.normal(keys, (7,), dtype=torch.float64)[0].tolist() == pytest.approx(expected[:7], abs=1e-12)
    assert noise.normal(keys, (7,))[0].tolist() == pytest.approx(expected[:7], abs=1e-6)


def test_normals_have_the_moments_of_a_standard_normal():
    z = noise.normal(noise.SeedSpec(1).keys(range(16)), (2**14,), dtype=torch.float64).flatten()
    error = 1 / math.sqrt(z.numel())
    # Standard errors of the first four raw moments of n normals: 1, sqrt 2, sqrt 15, sqrt 96 over sqrt n.
    assert abs(z.mean()) < 4 * error
    assert abs(z.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((z**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96) * error


@pytest.mark.parametrize("draw", [noise.uniform, noise.normal, noise.exponential])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (4, 33)])
def test_a_sample_is_bitwise_the_same_whatever_the_batch_and_the_order(draw, shape):
    spec = noise.SeedSpec(11)
    batch = draw(spec.keys(range(9)), shape)
    order = [6, 2, 8]
    assert torch.equal(draw(spec.keys(order), shape), batch[order])
    assert torch.equal(draw(spec.keys([4]), shape), batch[4:5])


def test_a_longer_draw_begins_with_the_shorter_one():
    keys = noise.SeedSpec(0).keys([0, 1])
    assert torch.equal(noise.normal(keys, (40,))[:, :17], noise.normal(keys, (17,)))
    assert torch.equal(noise.uniform(keys, (40,))[:, 12:], noise.uniform(keys, (28,), counter0=3))


def test_torch_compat_equals_a_list_of_generators_in_diffusers():
    randn_tensor = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    spec, ids = noise.SeedSpec(5), [3, 1, 4]
    theirs = randn_tensor((3, 4, 8, 8), generator=spec.generators(ids), device=torch.device("cpu"))
    ours = noise.torch_compat_normal(spec.generators(ids), (4, 8, 8))
    assert torch.equal(ours, theirs)
    assert torch.equal(noise.torch_compat_normal(spec.generators([1]), (4, 8, 8)), ours[1:2])
    assert noise.torch_compat_normal([], (2, 2)).shape == (0, 2, 2)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gumbel_argmax_draws_from_the_softmax(precision, temperature):
    """Chi-square on 64 classes and 1e5 draws.

    A right sampler exceeds 123 with probability 1e-5 (63 degrees of freedom). Power: 4 % of the uniform law
    mixed into the softmax gives non-centrality 384 (T = 1): below 123 with probability below 1e-20.
    """
    logits = torch.linspace(-2, 2, 64).roll(13)
    n = 100_000
    keys = noise.SeedSpec(2).keys(range(n))
    ids = noise.gumbel_argmax(logits.expand(n, 64), keys, temperature=temperature, precision=precision)
    expected = torch.softmax(logits.double() / temperature, 0) * n
    statistic = ((torch.bincount(ids, minlength=64) - expected) ** 2 / expected).sum()
    assert statistic < 123
    wrong = 0.96 * expected + 0.04 * n / 64
    assert ((wrong - expected) ** 2 / expected).sum() > 380


def test_a_token_twenty_nats_behind_wins_exactly_when_its_word_is_small_enough():
    """With E_0 = log 2, token 1 wins iff E_1 < e^-20 log 2, that is for w_1 + 1/2 < 6.136: words 0 ... 5."""
    logits = torch.tensor([[20.0, 0.0]]).expand(12, 2)
    drawn = torch.stack([torch.full((12,), 2**31), torch.arange(12)], dim=1)
    scores = noise.race_scores(logits, 1.0, noise.exponential_from_words(drawn))
    wins = scores.argmax(1)
    limit = math.exp(-20) * -math.log1p(-(2**31 + 0.5) / 2**32) * 2**32
    assert wins.tolist() == [int(w + 0.5 < limit) for w in range(12)]
    assert wins.sum() == 6


def test_float64_race_uses_both_words_and_reaches_forty_five_nats():
    drawn = torch.tensor([[0, 0], [0, 1], [MASK32, MASK32], [2**31, 0]])
    e = noise.exponential_from_two_words(drawn).flatten().tolist()
    assert e[0] == pytest.approx(0.5 / 2**64, rel=1e-12)
    assert e[1] == pytest.approx(1.5 / 2**64, rel=1e-12)
    assert e[2] == pytest.approx(65 * math.log(2), rel=1e-12)
    assert e[3] == pytest.approx(math.log(2), rel=1e-9)


def test_temperature_zero_is_the_arg_max_with_ties_to_the_lowest_index():
    keys = noise.SeedSpec(0).keys(range(3))
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]]).repeat(3, 1)
    assert noise.gumbel_argmax(logits, keys, temperature=0).tolist() == [1, 1, 1]
    warm = noise.gumbel_argmax(logits, keys)
    mixed = noise.gumbel_argmax(logits, keys, temperature=torch.tensor([1.0, 0.0, 1.0]))
    assert mixed.tolist() == [warm[0], 1, warm[2]]


def test_gumbel_argmax_is_the_same_whatever_the_batch():
    spec = noise.SeedSpec(7)
    logits = torch.randn(6, 37, generator=torch.Generator().manual_seed(0))
    whole = noise.gumbel_argmax(logits, spec.keys(range(6)))
    rows = [int(noise.gumbel_argmax(logits[i : i + 1], spec.keys([i]))) for i in range(6)]
    assert whole.tolist() == rows


def test_categorical_follows_its_weights_and_never_draws_a_zero():
    n = 20_000
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0])
    ids = noise.categorical(weights.expand(n, 5), noise.SeedSpec(3).keys(range(n)))
    counts = torch.bincount(ids, minlength=5)
    assert counts[[0, 3]].tolist() == [0, 0]
    for token, p in ((1, 1 / 8), (2, 3 / 8), (4, 1 / 2)):
        assert abs(counts[token] - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_absorbing_mask_with_exact_count_masks_the_rounded_share_of_maskable_tokens():
    x0 = torch.arange(40).reshape(4, 10)
    maskable = torch.ones(4, 10, dtype=torch.bool)
    maskable[1, :6] = False
    keys = noise.SeedSpec(0).keys(range(4))
    level = torch.tensor([0.0, 0.5, 0.25, 1.0])
    x, masked = noise.absorbing_mask(x0, level, keys, mask_id=99, exact_count=True, maskable=maskable)
    assert masked.sum(1).tolist() == [0, 2, 3, 10]
    assert not (masked & ~maskable).any()
    assert torch.equal(x, torch.where(masked, 99, x0))
    again = noise.absorbing_mask(x0[2:3], level[2:3], keys[2:3], mask_id=99, exact_count=True)[1]
    assert torch.equal(again, masked[2:3])


def test_absorbing_mask_masks_each_token_with_its_own_probability():
    n = 4000
    level = torch.tensor([0.0, 0.1, 0.6, 1.0]).expand(n, 4)
    masked = noise.absorbing_mask(
        torch.zeros(n, 4).long(), level, noise.SeedSpec(1).keys(range(n)), mask_id=9
    )[1]
    share = masked.double().mean(0)
    assert share[[0, 3]].tolist() == [0.0, 1.0]
    assert abs(share[1] - 0.1) < 4 * math.sqrt(0.09 / n)
    assert abs(share[2] - 0.6) < 4 * math.sqrt(0.24 / n)


def test_randint_covers_its_range_evenly():
    drawn = noise.randint(noise.SeedSpec(1).keys(range(10)), -2, 3, (3000,))
    counts = torch.bincount(drawn.flatten() + 2, minlength=5)
    assert counts.numel() == 5
    assert (abs(counts - 6000) < 4 * math.sqrt(30_000 * 0.2 * 0.8)).all()


def test_permutation_is_a_permutation_and_every_order_occurs():
    drawn = noise.permutation(noise.SeedSpec(1).keys(range(3000)), 3)
    assert (drawn.sort(1).values == torch.arange(3)).all()
    orders = torch.bincount(drawn @ torch.tensor([9, 3, 1]))
    counts = orders[orders > 0]
    assert len(counts) == 6
    assert (abs(counts - 500) < 4 * math.sqrt(3000 * 5 / 36)).all()


def test_duplicate_sample_ids_are_warned_about():
    with pytest.warns(UserWarning, match="same noise"):
        keys = noise.SeedSpec(0).keys([1, 1])
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x: noise.gumbel_argmax(x, k, temperature=-1), "temperature must be at least 0"),
        (lambda k, x: noise.gumbel_argmax(x.log(), k), "row 0 hold NaN"),
        (lambda k, x: noise.gumbel_argmax(x, k[:1]), "one key per row"),
        (lambda k, x: noise.gumbel_argmax(x, k, precision="half"), "precision must be one of"),
        (lambda k, x: noise.categorical(x * 0, k), "positive sum"),
        (lambda k, x: noise.absorbing_mask(x, 1.5, k, mask_id=0), "must lie in"),
        (lambda k, x: noise.absorbing_mask(x, x * 0, k, mask_id=0, exact_count=True), "one m per row"),
        (lambda k, x: noise.randint(k, 3, 3, (1,)), "high must be"),
        (lambda k, x: noise.words(k.float(), 3), "int64 vector"),
        (lambda k, x: noise.words(k, 3, counter0=-1), "counter0 must be"),
        (lambda k, x: noise.SeedSpec(0).keys([-1]), "sample ids"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    keys = noise.SeedSpec(0).keys([0, 1])
    with pytest.raises(InputError, match=message):
        call(keys, torch.full((2, 3), -1.0))
