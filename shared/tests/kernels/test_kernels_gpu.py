"""What only a GPU can show: graph capture, repeatability, compilation around the ops, 64-bit offsets."""

import pytest
import torch
from noiseworks.core import noise
from noiseworks.core.kernels import adaln, attention, fill, gumbel, logp
from noiseworks.core.kernels.attention import BENCHMARK as ATTENTION
from noiseworks.core.kernels.experts import BENCHMARK as EXPERTS
from noiseworks.core.kernels.experts import grouped_ffn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROWS, VOCABULARY = 64, 12_345


def inputs():
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(ROWS, VOCABULARY, generator=generator, device="cuda", dtype=torch.bfloat16)
    keys = noise.SeedSpec(0).keys(range(ROWS), "cuda")
    ids = torch.randint(VOCABULARY, (ROWS,), generator=generator, device="cuda")
    return logits, keys, ids


def calls():
    logits, keys, ids = inputs()
    t = torch.ones(ROWS, device="cuda")
    g = torch.ones(ROWS, device="cuda")
    x = torch.randn(4, 257, 384, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    scale = x[:, 0].clone()
    _, _, mean, rstd = adaln.adaln_op(x, scale, scale, None, None, False, 1e-6)
    _, lse, entropy = logp.logp_op(logits, ids, True)
    empty = x.new_empty(0)
    blocks = ATTENTION.inputs(ATTENTION.shape, torch.bfloat16, x.device)
    return {
        "attention": lambda: attention.attention_op(*blocks),
        "gumbel": lambda: gumbel.gumbel_op(logits, keys, t, None, 0, -1),
        "fill": lambda: (fill.fill_op(keys, 10_001, 0, "normal", torch.float32),),
        "logp": lambda: logp.logp_op(logits, ids, True),
        "logp backward": lambda: (logp.logp_backward_op(logits, ids, lse, entropy, g, g, g),),
        "adaln": lambda: adaln.adaln_op(x, scale, scale, None, None, False, 1e-6),
        "adaln backward": lambda: adaln.adaln_backward_op(x, empty, x, x, scale, None, mean, rstd, False),
    }


NAMES = ["attention", "gumbel", "fill", "logp", "logp backward", "adaln", "adaln backward"]


@pytest.mark.parametrize("name", NAMES)
def test_twenty_runs_give_the_same_bits(name):
    call = calls()[name]
    first = call()
    for _ in range(20):
        for a, b in zip(call(), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_replays_the_same_result(name):
    call = calls()[name]
    expected = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)


def test_compiled_code_around_the_ops_has_no_graph_break():
    logits, keys, ids = inputs()
    logits.requires_grad_()

    def loss(logits):
        draw = gumbel.gumbel_argmax_conf(logits.detach() * 2, keys, check=False)
        return (logp.selective_logp(logits * 2, ids).logp * draw.p_ids).sum()

    expected = torch.autograd.grad(loss(logits), logits)[0]
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(logits), logits)[0]
    assert torch.allclose(found.float(), expected.float(), atol=1e-2)


def test_words_on_the_gpu_equal_those_on_the_cpu():
    keys = noise.SeedSpec(3).keys(range(4))
    assert torch.equal(noise.words(keys.cuda(), 1001, 2**33).cpu(), noise.words(keys, 1001, 2**33))
    for kind in fill.KINDS:
        gpu, cpu = (
            fill.philox_noise((1001,), keys.cuda(), kind=kind).cpu(),
            fill.philox_noise((1001,), keys, kind=kind),
        )
        assert torch.allclose(gpu, cpu, rtol=2e-6, atol=1e-6)


def test_row_offsets_are_64_bit():
    """Rows that are 2^31 + 8 elements apart: a 32-bit offset would read outside the tensor."""
    storage = torch.zeros(2**31 + 8 + 300, dtype=torch.float16, device="cuda")
    logits = storage.as_strided((2, 300), (2**31 + 8, 1))
    logits.copy_(torch.randn(2, 300, device="cuda"))
    copy = logits.contiguous().clone()
    ids = torch.tensor([5, 7], device="cuda")
    keys, t = noise.SeedSpec(0).keys([0, 1], "cuda"), torch.ones(2, device="cuda")
    assert torch.equal(logp.logp_op(logits, ids, False)[0], logp.logp_op(copy, ids, False)[0])
    found, expected = (gumbel.gumbel_op(x, keys, t, None, 0, -1)[0] for x in (logits, copy))
    assert torch.equal(found, expected)


def test_grouped_experts_equal_the_loop_in_bfloat16_and_repeat_bitwise():
    arguments = EXPERTS.inputs(EXPERTS.shape, torch.bfloat16, torch.device("cuda"))
    grouped = grouped_ffn(*arguments, dispatch="grouped")
    assert torch.allclose(grouped.float(), grouped_ffn(*arguments, dispatch="loop").float(), atol=3e-2)
    for _ in range(20):
        assert torch.equal(grouped_ffn(*arguments, dispatch="grouped"), grouped)
