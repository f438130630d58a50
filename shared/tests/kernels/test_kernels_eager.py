"""The eager definitions against independent float64 formulas and autograd, and the custom ops on a CPU."""

import math

import pytest
import torch
from noiseworks.core import noise
from noiseworks.core.errors import InputError
from noiseworks.core.kernels import adaln, attention, dispatch, experts, fill, guidance, gumbel, logp, multi


def logits_of(rows, vocabulary, dtype=torch.float64):
    return (3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))).to(dtype)


# --- gumbel_argmax_conf


def test_confidence_scores_are_those_of_the_softmax():
    logits = logits_of(5, 23)
    draw = gumbel.gumbel_argmax_conf(logits, noise.SeedSpec(0).keys(range(5)), temperature=0.3, mask_id=4)
    kept = torch.cat([logits[:, :4], logits[:, 5:]], dim=1)
    p = torch.softmax(kept, dim=-1)
    top = p.sort(dim=-1, descending=True).values
    assert torch.allclose(draw.p_max, top[:, 0], rtol=1e-12)
    assert torch.allclose(draw.margin, top[:, 0] - top[:, 1], rtol=1e-12)
    assert torch.allclose(draw.entropy, torch.distributions.Categorical(probs=p).entropy(), rtol=1e-12)
    full = torch.zeros_like(logits)
    full[:, [i for i in range(23) if i != 4]] = p
    assert torch.allclose(draw.p_ids, full.gather(1, draw.ids[:, None])[:, 0], rtol=1e-12)


def test_the_draw_is_that_of_the_noise_module_and_never_the_mask():
    logits = logits_of(200, 9, torch.float32)
    keys = noise.SeedSpec(1).keys(range(200))
    assert torch.equal(gumbel.gumbel_argmax_conf(logits, keys).ids, noise.gumbel_argmax(logits, keys))
    assert not (gumbel.gumbel_argmax_conf(logits, keys, mask_id=3).ids == 3).any()


def test_top_p_draws_only_from_the_nucleus_at_the_temperature():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    keys = noise.SeedSpec(1).keys(range(400))
    logits = p.log().expand(400, 4)

    def drawn(**settings):
        return set(gumbel.gumbel_argmax_conf(logits, keys, **settings).ids.tolist())

    assert drawn(top_p=0.5) == {0}
    assert drawn(top_p=0.75) == {0, 1}
    assert drawn(top_p=1.0) == {0, 1, 2, 3}
    # At T = 1/4 the weights are p^4: 0.0625, 0.0081, ... so that 0.85 of the mass is the first token alone.
    assert drawn(top_p=0.85, temperature=0.25) == {0}
    assert drawn(top_p=0.85) == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_id": 9}, "mask_id"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -0.1}, "temperature"),
        ({"counter0": -1}, "counter0"),
    ],
)
def test_bad_settings_of_a_draw_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        gumbel.gumbel_argmax_conf(logits_of(2, 9), noise.SeedSpec(0).keys([0, 1]), **settings)


def test_bad_rows_are_refused_or_marked():
    logits = logits_of(3, 9)
    logits[1] = -math.inf
    keys = noise.SeedSpec(0).keys(range(3))
    with pytest.raises(InputError, match="row 1"):
        gumbel.gumbel_argmax_conf(logits, keys)
    assert gumbel.gumbel_argmax_conf(logits, keys, check=False).ids[1] == -1


# --- selective_logp and DPO


@pytest.mark.parametrize("entropy", [False, True])
def test_log_probabilities_match_the_distribution_and_their_gradients_gradcheck(entropy):
    logits = logits_of(4, 7).requires_grad_()
    ids = torch.tensor([0, 6, -100, 3])
    found = logp.selective_logp(logits, ids, entropy=entropy)
    expected = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(found.logp[[0, 1, 3]], expected.log_prob(ids.clamp(min=0))[[0, 1, 3]], rtol=1e-12)
    assert found.logp[2] == 0
    if entropy:
        assert torch.allclose(found.entropy, expected.entropy(), rtol=1e-12)
    parts = 3 if entropy else 2
    assert torch.autograd.gradcheck(lambda x: logp.logp_op(x, ids, entropy)[:parts], (logits,))


def test_forbidden_tokens_get_no_gradient():
    logits = torch.tensor([[1.0, -math.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    for run in (logp.eager, logp.logp_op):
        chosen, _, entropy = run(logits, torch.tensor([0]), True)
        (gradient,) = torch.autograd.grad((chosen + entropy).sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[0, 1] == 0


def test_dpo_losses_have_their_worked_values():
    """With logp (-1, -2) and reference (-1.5, -1): d = 1 - (-0.5) = 1.5; beta = 0.4 gives beta d = 0.6."""
    pair = [torch.tensor([value]) for value in (-1.0, -2.0, -1.5, -1.0)]
    likely, flipped = math.log1p(math.exp(-0.6)), math.log1p(math.exp(0.6))
    assert float(logp.dpo_loss(*pair, beta=0.4)) == pytest.approx(likely)
    smoothed = logp.dpo_loss(*pair, beta=0.4, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(0.9 * likely + 0.1 * flipped)
    assert float(logp.dpo_loss(*pair, beta=0.4, variant="hinge")) == pytest.approx(0.4)
    assert float(logp.dpo_loss(*pair, beta=0.4, variant="ipo")) == pytest.approx((1.5 - 1.25) ** 2)
    with pytest.raises(InputError, match="label_smoothing belongs"):
        logp.dpo_loss(*pair, label_smoothing=0.1, variant="ipo")


# --- adaln_modulate


@pytest.mark.parametrize("norm", adaln.NORMS)
@pytest.mark.parametrize("per_token", [False, True])
def test_modulation_matches_torch_norms_and_its_backward_gradchecks(norm, per_token):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 5)
    sizes = [shape, *[shape if per_token else (2, 5)] * 3, shape]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in sizes]
    x, scale, shift, gate, residual = tensors
    spread = [m if per_token else m[:, None] for m in (scale, shift, gate)]
    normalise = {"layer": torch.nn.functional.layer_norm, "rms": torch.nn.functional.rms_norm}[norm]
    h = residual + spread[2] * x
    y, stream = adaln.adaln_modulate(*tensors, norm=norm)
    assert torch.allclose(y, normalise(h, (5,), eps=1e-6) * (1 + spread[0]) + spread[1], atol=1e-12)
    assert torch.allclose(stream, h, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *t: adaln.adaln_op(*t, norm == "rms", 1e-6)[:2], tensors)
    plain = tensors[:3]
    assert torch.autograd.gradcheck(lambda *t: adaln.adaln_op(*t, None, None, norm == "rms", 1e-6)[0], plain)


def test_modulation_refuses_a_gate_without_a_residual():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(InputError, match="belong together"):
        adaln.adaln_modulate(x, x, x, gate=x)
    with pytest.raises(InputError, match="scale, shift both"):
        adaln.adaln_modulate(x, x[0], x)


# --- block_gather_attention


def blocks_case(heads=4, key_heads=2, lengths=(5, 16, 0, 31), dtype=torch.float64):
    """Queries, caches of blocks of 8, a table in which each sequence's blocks lie in no order, lengths."""
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(len(lengths), heads, 3, 6, generator=generator, dtype=dtype)
    k, v = torch.randn(2, 20, 8, key_heads, 6, generator=generator, dtype=dtype)
    table = torch.randperm(20, generator=generator)[: 4 * len(lengths)].reshape(-1, 4)
    return q, k, v, table, torch.tensor(lengths)


def test_attention_over_blocks_is_a_softmax_over_each_sequences_own_keys():
    q, k, v, table, lengths = blocks_case()
    found = attention.block_gather_attention(q, k, v, table, lengths, scale=0.7)
    for row, length in enumerate(lengths.tolist()):
        for head in range(4):
            keys = torch.stack(
                [k[table[row, n // 8], n % 8, head // 2] for n in range(length)] or [k[0, 0, 0]]
            )
            values = torch.stack(
                [v[table[row, n // 8], n % 8, head // 2] for n in range(length)] or [v[0, 0, 0]]
            )
            scores = 0.7 * q[row, head] @ keys.T
            expected = torch.softmax(scores, -1) @ values if length else torch.zeros(3, 6)
            assert torch.allclose(found.output[row, head], expected.to(q), rtol=1e-12, atol=1e-14)
            lse = scores.logsumexp(-1) if length else torch.full((3,), -math.inf)
            assert torch.allclose(found.lse[row, head], lse.to(q), rtol=1e-12)


def test_parts_of_the_keys_merge_into_all_of_them():
    q, k, v, table, lengths = blocks_case()
    whole = attention.block_gather_attention(q, k, v, table, lengths)
    front = attention.block_gather_attention(q, k, v, table[:, :2], lengths.clamp(max=16))
    back = attention.block_gather_attention(q, k, v, table[:, 2:], (lengths - 16).clamp(min=0))
    merged = attention.merge_attention(torch.stack([front[0], back[0]]), torch.stack([front[1], back[1]]))
    assert torch.allclose(merged.output, whole.output, rtol=1e-12, atol=1e-14)
    assert torch.allclose(merged.lse, whole.lse, rtol=1e-12)
    assert merged.lse[2].eq(-math.inf).all()


def test_what_lies_beyond_a_length_is_not_read_and_a_table_that_fits_no_cache_gives_nan():
    q, k, v, table, lengths = blocks_case()
    expected = attention.block_gather_attention(q, k, v, table, lengths)
    k[table[0, 0], 5:], v[table[0, 0], 5:] = math.nan, math.nan
    table[0, 1:] = -1
    again = attention.block_gather_attention(q, k, v, table, lengths)
    assert torch.equal(again.output, expected.output)
    table[1, 1], lengths[3] = 20, 33
    bad = attention.block_gather_attention(q, k, v, table, lengths)
    assert bad.output.isnan().flatten(1).all(1).tolist() == [False, True, False, True]
    assert bad.lse.isnan().flatten(1).all(1).tolist() == [False, True, False, True]


def test_attention_over_blocks_refuses_what_does_not_fit():
    q, k, v, table, lengths = blocks_case()
    for wrong in (
        (q[:, :3], k, v, table, lengths),
        (q, k, v[:2], table, lengths),
        (q, k, v, table[:2], lengths),
    ):
        with pytest.raises(InputError, match="need q"):
            attention.block_gather_attention(*wrong)
    with pytest.raises(InputError, match="need one dtype"):
        attention.block_gather_attention(q.float(), k, v, table, lengths)
    with pytest.raises(InputError, match="int64"):
        attention.block_gather_attention(q, k, v, table.int(), lengths)
    with pytest.raises(InputError, match="scale"):
        attention.block_gather_attention(q, k, v, table, lengths, scale=0)


# --- custom ops


def op_cases():
    keys = noise.SeedSpec(0).keys(range(3))
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    scale = x[:, 0].clone().requires_grad_()
    ids = torch.tensor([0, 5, 2])
    return {
        "attention": (attention.attention_op, (*blocks_case(dtype=torch.float32), 0.5)),
        "gumbel": (gumbel.gumbel_op, (x[:, 0].contiguous(), keys, torch.ones(3), None, 0, -1)),
        "fill": (fill.fill_op, (keys, 10, 0, "normal", torch.float32)),
        "logp": (logp.logp_op, (scale, ids, True)),
        "adaln": (adaln.adaln_op, (leaf, scale, scale.detach() * 2, None, None, False, 1e-6)),
        "adaln gated": (adaln.adaln_op, (leaf, scale, scale.detach(), scale.detach(), x, True, 1e-6)),
    }


@pytest.mark.parametrize("name", list(op_cases()))
def test_custom_ops_pass_opcheck(name):
    op, arguments = op_cases()[name]
    torch.library.opcheck(op, arguments)


def test_custom_ops_compile_without_a_graph_break():
    keys, t = noise.SeedSpec(0).keys(range(3)), torch.ones(3)
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))

    def loss(x):
        y = adaln.adaln_op(x, x[:, 0] * 1, x[:, 1] * 1, None, None, False, 1e-6)[0]
        draw = gumbel.gumbel_op(y[:, 0].detach() * 1, keys, t, None, 0, -1)
        return (logp.logp_op(y[:, 0] * 1, draw[0], False)[0] * draw[1]).sum()

    leaf, compiled_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(leaf).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_leaf).backward()
    assert torch.allclose(compiled_leaf.grad, leaf.grad, atol=1e-6)


def test_mode_triton_refuses_with_the_reason_and_mode_eager_never_launches(monkeypatch):
    tensor = torch.zeros(2, 3)
    monkeypatch.setattr(dispatch, "MODE", "triton")
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "INTERPRET", False)
    with pytest.raises(InputError, match="the tensors are on cpu"):
        dispatch.runs_triton(tensor)
    monkeypatch.setattr(dispatch, "INTERPRET", True)
    assert dispatch.runs_triton(tensor, None)
    with pytest.raises(InputError, match="not contiguous"):
        dispatch.runs_triton(tensor.T)
    with pytest.raises(InputError, match="float64"):
        dispatch.runs_triton(tensor.double())
    monkeypatch.setattr(dispatch, "MODE", "eager")
    assert not dispatch.runs_triton(tensor)


# --- grouped_ffn


@pytest.mark.parametrize("activation", experts.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_and_looped_experts_equal_a_dense_float64_sum_with_empty_experts(activation, dtype):
    generator = torch.Generator().manual_seed(0)
    width = 2 if activation == "swiglu" else 1

    def draw(*size):
        return torch.randn(size, generator=generator).to(dtype).requires_grad_()

    leaves = x, w1, w2, weights = draw(17, 8), draw(5, 8, 16 * width), draw(5, 16, 8), draw(17, 2)
    ids = torch.randint(1, 4, (17, 2), generator=generator)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    hidden = torch.einsum("td,edh->teh", wide[0], wide[1])
    if activation == "swiglu":
        hidden = torch.nn.functional.silu(hidden[..., :16]) * hidden[..., 16:]
    else:
        hidden = torch.nn.functional.gelu(hidden)
    every = torch.einsum("teh,ehd->ted", hidden, wide[2])
    dense = (every.gather(1, ids[..., None].expand(-1, -1, 8)) * wide[3][..., None]).sum(1)
    expected = torch.autograd.grad(dense.sum(), wide)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for way in ("grouped", "loop"):
        y = experts.grouped_ffn(x, w1, w2, ids, weights, activation=activation, dispatch=way)
        assert float((y - dense).abs().max()) <= tolerance * float(dense.abs().max())
        for got, want in zip(torch.autograd.grad(y.sum(), leaves), expected, strict=True):
            assert got.isfinite().all()
            assert float((got - want).abs().max()) <= tolerance * float(want.abs().max())


def test_groups_are_stable_and_their_ends_count_empty_experts():
    order, ends = experts.group_by_expert(torch.tensor([3, 1, 3, 0, 1]), 5)
    assert order.tolist() == [3, 1, 4, 0, 2]
    assert ends.tolist() == [1, 3, 3, 5, 5]
    assert ends.dtype == torch.int32


def test_experts_that_grouped_mm_cannot_take_go_through_the_loop():
    x, w1, w2 = torch.randn(3, 6), torch.randn(2, 6, 10), torch.randn(2, 10, 6)
    ids, weights = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    assert "multiples of 4" in experts.why_not_grouped(x, w1, w2)
    assert "float64" in experts.why_not_grouped(x.double(), w1, w2)
    assert experts.grouped_ffn(x, w1, w2, ids, weights).shape == (3, 6)
    assert experts.grouped_ffn(x[:0], w1, w2, ids[:0], weights[:0]).shape == (0, 6)
    with pytest.raises(InputError, match="use dispatch loop"):
        experts.grouped_ffn(x, w1, w2, ids, weights, dispatch="grouped")
    with pytest.raises(InputError, match="need x"):
        experts.grouped_ffn(x, w1, w2, ids, weights, activation="swiglu")


# --- guidance, EMA, PGD


def test_the_guided_step_and_its_statistics_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    x, u, c, z = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    w, c_x, c_e = torch.tensor([[7.5, 1.0], [0.9, 0.8], [-0.2, 0.1]], dtype=torch.float64)
    following, stats = guidance.cfg_step_reduce(x, u, c, w, c_x, c_e, z)
    for i in range(2):
        e = u[i] + w[i] * (c[i] - u[i])
        assert torch.allclose(following[i], c_x[i] * x[i] + c_e[i] * e + z[i], rtol=1e-12)
        expected = [float((a * b).sum()) for a, b in ((u[i], c[i]), (u[i], u[i]), (c[i], c[i]), (e, e))]
        assert stats[i].tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="noise must be"):
        guidance.cfg_step_reduce(x, u, c, w, c_x, c_e, z[0])


def test_ema_follows_half_precision_parameters_in_float32():
    ema = [torch.zeros(3), torch.ones(2)]
    multi.ema_update(ema, [torch.ones(3, dtype=torch.bfloat16), torch.zeros(2)], 0.999)
    assert ema[0].tolist() == pytest.approx([0.001] * 3)
    assert ema[1].tolist() == pytest.approx([0.999] * 2)
    multi.ema_update([], [], 0.5)
    with pytest.raises(InputError, match="decay"):
        multi.ema_update(ema, ema, 1.5)


def test_pgd_stays_in_its_ball_and_moves_by_its_step():
    x0 = torch.full((2, 4), 0.5)
    gradient = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    moved = multi.pgd_project(x0, gradient, x0, 0.1, 0.06)
    assert torch.allclose(moved, torch.tensor([[0.56, 0.44, 0.5, 0.56], [0.5] * 4]))
    near = multi.pgd_project(x0, gradient, x0, 0.1, 1.0, norm="l2")
    assert torch.allclose((near - x0).norm(dim=1), torch.tensor([0.1, 0.0]), atol=1e-7)
    far = multi.pgd_project(x0, gradient, x0, 0.4, 0.25, norm="l2")
    assert torch.allclose(far[0] - x0[0], 0.25 * gradient[0] / gradient[0].norm())
    assert multi.pgd_project(x0, gradient, x0, 9.0, 9.0).max() == 1
    with pytest.raises(InputError, match="eps"):
        multi.pgd_project(x0, gradient, x0, 0.1, -1)
