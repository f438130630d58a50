"""Triton kernels against their eager definitions: on a GPU, or interpreted on the CPU."""

import math
from itertools import product

import pytest
import torch
from noiseworks.core import noise
from noiseworks.core.kernels import adaln, attention, dispatch, fill, gumbel, logp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dispatch.HAS_TRITON, reason="no GPU: test_kernels_interpreter runs it"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Error of an output that is rounded to the dtype: one unit in the last place, and 2e-6 of float32 arithmetic.
ULP = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several chunks also for small vocabularies: an interpreted program takes milliseconds."""
    if dispatch.INTERPRET:
        monkeypatch.setattr(gumbel, "BLOCK_V", 256)
        monkeypatch.setattr(logp, "BLOCK_V", 256)
        monkeypatch.setattr(fill, "BLOCK", 256)
        monkeypatch.setattr(adaln, "ROWS", 4)
        monkeypatch.setattr(attention, "SPLIT_KEYS", 32)


def logits_of(device, rows, vocabulary, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype).to(device)


def close(actual, expected, tolerance, name="", floor=1e-3):
    """Refuse an error above the tolerance, relative to the value but at least to `floor` of the largest.

    A floor of 1 is for sums of terms that may cancel, where no single value has a relative error to speak of.
    """
    if expected.numel():
        expected = expected.double()
        largest = float(expected.abs().max()) or 1.0
        worst = float(((actual.double() - expected).abs() / expected.abs().clamp(min=floor * largest)).max())
        assert worst <= tolerance, f"{name} is off by {worst:.2e}, allowed {tolerance:.2e}"


def weighted(weights, outputs):
    return sum(
        (weight.to(output.dtype) * output).sum() for weight, output in zip(weights, outputs, strict=False)
    )


# --- gumbel_argmax_conf


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [  # one token, less than a chunk, full chunks alone, and full ones with a rest, which every dtype has to read
        *(((rows, size), torch.float32) for rows, size in ((1, 1), (3, 255), (2, 512))),
        *(((4, 600), dtype) for dtype in DTYPES),
    ],
)
def test_draws_equal_the_eager_draws_and_scores_the_float64_scores(device, dtype, shape):
    logits = logits_of(device, *shape, dtype)
    keys = noise.SeedSpec(1).keys(range(shape[0]), device)
    t = torch.tensor([1.0, 0.0, 0.5, 2.0], device=device)[: shape[0]]
    ours = gumbel.gumbel_op(logits, keys, t, None, 7, -1)
    eager = gumbel.eager(logits, keys, t, None, 7, -1)
    exact = gumbel.eager(logits.double(), keys, t.double(), None, 7, -1)
    assert torch.equal(ours[0], eager[0])
    assert torch.equal(ours[0], exact[0])
    for name, a, b in zip(gumbel.GumbelDraw._fields[1:], ours[1:], exact[1:], strict=True):
        close(a, b, 2e-6, name)


def test_the_kernel_runs_from_the_public_function_with_mask_and_nucleus(device):
    logits = logits_of(device, 5, 700, torch.bfloat16)
    keys = noise.SeedSpec(2).keys(range(5), device)
    best = int(logits[0].argmax())
    draw = gumbel.gumbel_argmax_conf(logits, keys, temperature=0.7, mask_id=best, top_p=0.5, counter0=2**33)
    t = torch.full((5,), 0.7, device=device)
    floors = gumbel.nucleus_floor(logits.float(), t, best, 0.5)
    assert torch.equal(draw.ids, gumbel.eager(logits, keys, t, floors, 2**33, best)[0])
    assert draw.ids[0] != best
    assert (logits.float().gather(1, draw.ids[:, None])[:, 0] >= floors).all()


def test_a_draw_is_bitwise_the_same_in_any_batch_on_the_kernel(device):
    logits = logits_of(device, 3, 600, torch.float32)
    keys = noise.SeedSpec(3).keys(range(3), device)
    whole = gumbel.gumbel_argmax_conf(logits, keys)
    for row in (0, 2):
        alone = gumbel.gumbel_argmax_conf(logits[row : row + 1], keys[row : row + 1])
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(a[0], b[row])


def test_bad_rows_get_id_minus_one_and_nan_scores(device):
    logits = logits_of(device, 4, 600, torch.float32)
    logits[0, 599] = math.nan
    logits[1, 300] = math.inf
    logits[2] = -math.inf
    draw = gumbel.gumbel_argmax_conf(logits, noise.SeedSpec(0).keys(range(4), device), check=False)
    assert (draw.ids < 0).tolist() == [True, True, True, False]
    assert draw.entropy.isnan().tolist() == [True, True, True, False]


def test_ties_at_temperature_zero_go_to_the_lowest_index_across_chunks(device):
    logits = torch.zeros(2, 1000, device=device)
    logits[0, [300, 301, 900]] = 5
    logits[1, [255, 256]] = 5
    draw = gumbel.gumbel_argmax_conf(logits, noise.SeedSpec(0).keys([0, 1], device), temperature=0)
    assert draw.ids.tolist() == [300, 255]
    assert draw.margin.tolist() == [0.0, 0.0]


def test_whole_chunks_of_forbidden_tokens_change_nothing(device):
    logits = logits_of(device, 3, 1000, torch.float32)
    logits[:, :300] = -math.inf
    logits[:, 700:] = -math.inf
    keys = noise.SeedSpec(4).keys(range(3), device)
    ours, t = gumbel.gumbel_argmax_conf(logits, keys), torch.ones(3, device=device)
    exact = gumbel.eager(logits.double(), keys, t.double(), None, 0, -1)
    assert torch.equal(ours.ids, exact[0])
    for name, a, b in zip(ours._fields[1:], ours[1:], exact[1:], strict=True):
        close(a, b, 2e-6, name)


# --- philox_noise


@pytest.mark.parametrize("kind", fill.KINDS)
@pytest.mark.parametrize("counter0", [0, 1, 2**32 - 3])
def test_filled_noise_equals_the_noise_functions(device, kind, counter0):
    keys = noise.SeedSpec(5).keys(range(3), device)
    ours = fill.fill_op(keys, 601, counter0, kind, torch.float32)
    eager = fill.eager(keys, 601, counter0, kind, torch.float32)
    if kind == "uniform":
        assert torch.equal(ours, eager)
    exact = fill.eager(keys, 601, counter0, kind, torch.float64)
    if kind == "exponential":
        close(ours, exact, 2e-6, kind)
    assert (ours - eager).abs().max() <= 1e-6
    assert (ours - exact).abs().max() <= 2e-6


def test_filled_noise_keeps_shape_and_dtype(device):
    keys = noise.SeedSpec(5).keys(range(2), device)
    full = fill.philox_noise((4, 5, 7), keys)
    half = fill.philox_noise((4, 5, 7), keys, dtype=torch.float16)
    assert full.shape == half.shape == (2, 4, 5, 7)
    assert torch.equal(half, full.half())


# --- selective_logp


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 255), (4, 1001)])
@pytest.mark.parametrize("entropy", [False, True])
def test_log_probabilities_and_gradients_equal_float64_autograd(device, dtype, shape, entropy):
    logits = logits_of(device, *shape, dtype).requires_grad_()
    ids = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(1)).to(device)
    ids[1:2] = -100
    weights = torch.linspace(-1, 2, 3 * shape[0], device=device).reshape(3, -1)
    ours = logp.logp_op(logits, ids, entropy)
    wide = logits.detach().double().requires_grad_()
    exact = logp.eager(wide, ids, entropy)
    for name, a, b in zip(("logp", "lse", "entropy"), ours, exact, strict=True):
        close(a, b, 2e-6, name)
    parts = 3 if entropy else 2
    (gradient,) = torch.autograd.grad(weighted(weights, ours[:parts]), logits)
    (expected,) = torch.autograd.grad(weighted(weights, exact[:parts]), wide)
    assert gradient.dtype == dtype
    close(gradient, expected, max(1e-4, ULP[dtype] + 1e-3 * (dtype != torch.float32)), "gradient")


def test_public_log_probabilities_take_any_leading_shape_and_strided_rows(device):
    logits = logits_of(device, 6, 640, torch.float32)[:, :600].unflatten(0, (2, 3))
    ids = torch.arange(6, device=device).reshape(2, 3)
    logits = logits.requires_grad_()
    found = logp.selective_logp(logits, ids, entropy=True)
    expected = torch.log_softmax(logits.double(), -1)
    close(found.logp, expected.gather(-1, ids[..., None])[..., 0], 2e-6)
    close(found.entropy, -(expected.exp() * expected).sum(-1), 2e-6)
    assert found.lse.shape == (2, 3)
    found.logp.sum().backward()
    assert logits.grad.shape == logits.shape


def test_an_id_beyond_the_vocabulary_gives_nan_not_a_wild_read(device):
    logits = logits_of(device, 2, 300, torch.float32)
    found = logp.logp_op(logits, torch.tensor([0, 300], device=device), False)[0]
    assert found.isnan().tolist() == [False, True]


# --- adaln_modulate


def adaln_case(device, dtype, shape, per_token, gated):
    generator = torch.Generator().manual_seed(3)
    samples, _, channels = shape
    modulation = shape if per_token else (samples, channels)
    sizes = [shape, modulation, modulation] + ([modulation, shape] if gated else [])
    return [torch.randn(size, generator=generator).to(dtype).to(device).requires_grad_() for size in sizes]


@pytest.mark.parametrize(
    ("dtype", "norm", "per_token", "gated"),
    [
        *product([torch.float32], adaln.NORMS, [False, True], [False, True]),
        *product([torch.bfloat16], ["rms"], [False, True], [False, True]),
        (torch.float16, "layer", True, True),
    ],
)
def test_modulation_and_its_gradients_equal_float64_autograd(device, dtype, norm, per_token, gated):
    shape = (2, adaln.ROWS + 3, 37)  # the second block of tokens is not full
    inputs = adaln_case(device, dtype, shape, per_token, gated)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    padding = [None] * (5 - len(inputs))
    ours = adaln.adaln_op(*inputs, *padding, norm == "rms", 1e-6)
    exact = adaln.eager(*wide, *padding, norm == "rms", 1e-6)
    outputs = 2 if gated else 1
    # With a residual, h is rounded to the dtype before it is normalised, as in the unfused code.
    tolerance = ULP[dtype] + (1e-3 if dtype != torch.float32 else 0)
    for name, a, b in zip(("y", "h"), ours[:outputs], exact[:outputs], strict=False):
        close(a, b, tolerance, name, floor=1)
    weights = torch.randn(2, *shape, generator=torch.Generator().manual_seed(4)).to(device)
    got = torch.autograd.grad(weighted(weights, ours[:outputs]), inputs)
    expected = torch.autograd.grad(weighted(weights, exact[:outputs]), wide)
    allowed = 1e-4 if dtype == torch.float32 else 2 * tolerance
    for name, a, b in zip(("x", "scale", "shift", "gate", "residual"), got, expected, strict=False):
        assert a.dtype == dtype
        close(a, b, allowed, f"gradient of {name}", floor=1)


def test_modulation_takes_slices_of_one_projection_and_expanded_gradients(device):
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    six = torch.randn(2, 6 * 24, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    shift, scale, gate, *_ = six.chunk(6, dim=1)
    assert dispatch.why_not_triton(x, scale, shift, gate) is None
    y, h = adaln.adaln_modulate(x, scale, shift, gate, x)
    exact = adaln.eager(*(tensor.double() for tensor in (x, scale, shift, gate, x)), False, 1e-6)
    close(y, exact[0], 2e-6, floor=1)
    (y.sum() + h.sum()).backward()
    (g_x, g_six) = torch.autograd.grad(exact[0].sum() + exact[1].sum(), (x, six))
    close(x.grad, g_x, 1e-4, floor=1)
    close(six.grad, g_six, 1e-4, floor=1)


# --- block_gather_attention


def blocks_case(device, dtype, heads, key_heads, lengths):
    """A pool of two layers whose second one is used, so that no cache is contiguous; width 20 is no power of two."""
    generator = torch.Generator().manual_seed(6)
    q = torch.randn(len(lengths), heads, 5, 20, generator=generator)
    pool = torch.randn(2, 2, 16, 16, key_heads, 20, generator=generator).transpose(0, 1)
    table = torch.randperm(16, generator=generator)[: 5 * len(lengths)].reshape(-1, 5)
    k, v = pool.to(dtype).to(device)[1]
    return q.to(dtype).to(device), k, v, table.to(device), torch.tensor(lengths, device=device)


@pytest.mark.parametrize(
    ("dtype", "heads", "key_heads"), [(torch.float32, 2, 2), *((dtype, 6, 2) for dtype in DTYPES)]
)
def test_attention_over_blocks_equals_float64(device, dtype, heads, key_heads):
    q, k, v, table, lengths = blocks_case(device, dtype, heads, key_heads, (77, 0, 16))
    table[2, 1:] = -1
    ours = attention.attention_op(q, k, v, table, lengths, 0.3)
    exact = attention.eager(q.double(), k.double(), v.double(), table, lengths, 0.3)
    close(ours[0], exact[0], ULP[dtype] + (1e-3 if dtype != torch.float32 else 0), "output", floor=1)
    seen = [0, 2]
    close(ours[1][seen], exact[1][seen], 2e-6 if dtype == torch.float32 else 1e-3, "lse", floor=1)
    assert ours[1][1].eq(-math.inf).all()
    assert ours[0][1].eq(0).all()


def test_attention_over_blocks_runs_from_the_public_function_bitwise_alike_in_any_batch(device):
    q, k, v, table, lengths = blocks_case(device, torch.float32, 2, 1, (80, 33, 5))
    whole = attention.block_gather_attention(q, k, v, table, lengths)
    for row in range(3):
        one = slice(row, row + 1)
        alone = attention.block_gather_attention(q[one], k, v, table[one], lengths[one])
        assert torch.equal(alone.output[0], whole.output[row])
        assert torch.equal(alone.lse[0], whole.lse[row])


def test_a_table_that_fits_no_cache_gives_nan_not_a_wild_read(device):
    q, k, v, table, lengths = blocks_case(device, torch.float32, 2, 2, (80, 81, 20))
    table[0, 4] = 16
    found = attention.attention_op(q, k, v, table, lengths, 1.0)
    assert found[0].isnan().flatten(1).all(1).tolist() == [True, True, False]
    assert found[1].isnan().flatten(1).all(1).tolist() == [True, True, False]


# --- what holds for every op


def test_empty_batches_are_supported(device):
    keys = torch.empty(0, dtype=torch.int64, device=device)
    logits = torch.empty(0, 50, device=device, requires_grad=True)
    assert gumbel.gumbel_argmax_conf(logits, keys).ids.shape == (0,)
    assert fill.philox_noise((3,), keys).shape == (0, 3)
    found = logp.selective_logp(logits, keys)
    found.logp.sum().backward()
    assert logits.grad.shape == (0, 50)
    x = torch.empty(2, 0, 8, device=device, requires_grad=True)
    scale = torch.ones(2, 8, device=device, requires_grad=True)
    q, k, v, table, lengths = blocks_case(device, torch.float32, 2, 2, (80, 20))
    assert attention.block_gather_attention(q[:0], k, v, table[:0], lengths[:0]).output.shape == (0, 2, 5, 20)
    assert attention.block_gather_attention(q, k, v, table[:, :0], lengths * 0).output.eq(0).all()
    adaln.adaln_modulate(x, scale, scale).sum().backward()
    assert scale.grad.tolist() == [[0.0] * 8] * 2


def test_strided_last_dimensions_and_float64_fall_back_to_eager_code(device, monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("the kernel must not run")

    for module in (gumbel, logp, adaln, attention):
        monkeypatch.setattr(module, "_launch", forbidden)
    keys = noise.SeedSpec(0).keys(range(4), device)
    logits = logits_of(device, 4, 40, torch.float32)
    for unfit in (logits[:, ::2], logits.double()):
        assert dispatch.why_not_triton(unfit) is not None
        assert gumbel.gumbel_argmax_conf(unfit, keys).ids.shape == (4,)
        assert logp.selective_logp(unfit, torch.zeros_like(keys)).logp.shape == (4,)
        rows = unfit[None, :, :10]
        assert adaln.adaln_modulate(rows, rows, rows).shape == rows.shape
        blocks = unfit[:, None, None].expand(4, 16, 1, -1)
        table, lengths = keys[:1, None] * 0, keys[:1] * 0 + 9
        assert attention.block_gather_attention(blocks[:1, :2], blocks, blocks, table, lengths).lse.shape == (
            1,
            2,
            1,
        )
    monkeypatch.setattr(dispatch, "MODE", "eager")
    assert gumbel.gumbel_argmax_conf(logits, keys).ids.shape == (4,)
