"""The kernel benchmark as a user would type it."""

import json

import pytest
import torch
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.bench import OPS, bench, list_ops, load_benchmark
from noiseworks.core.kernels.cli import app

SMALL = {
    "gumbel_argmax_conf": "rows=2,vocabulary=40",
    "selective_logp": "rows=2,vocabulary=40",
    "adaln_modulate": "samples=2,tokens=3,channels=8,per_token=1",
    "philox_noise": "samples=2,elements=10",
    "grouped_ffn": "tokens=6,d=8,h=16,experts=3",
    "block_gather_attention": "samples=2,queries=3,width=16,entries=2",
    "cfg_step_reduce": "samples=2,elements=10",
    "pgd_project": "samples=2,elements=10",
    "ema_update": "tensors=2,elements=10",
}


@pytest.mark.parametrize("op", list(OPS))
def test_every_op_is_measured_with_its_naive_and_eager_code(op):
    backward = bool(load_benchmark(op).gradients)
    result = bench(op=op, shape=SMALL[op], provider="naive,eager", device="cpu", repeats=5, backward=backward)
    assert [timing.provider for timing in result.timings] == ["naive", "eager"]
    assert result.timings[1].ratio_to_eager == 1
    assert result.least_bytes > 0
    assert all(timing.gigabytes_per_second is None for timing in result.timings)


@pytest.mark.parametrize(
    "op", [op for op in OPS if op not in ("gumbel_argmax_conf", "philox_noise", "ema_update")]
)
def test_naive_code_computes_what_the_op_computes(op):
    benchmark = load_benchmark(op)
    arguments = benchmark.inputs(benchmark.shape, torch.float32, torch.device("cpu"))
    naive, eager = benchmark.naive(*arguments), benchmark.eager(*arguments)
    naive, eager = (out if isinstance(out, torch.Tensor) else out[0] for out in (naive, eager))
    assert torch.allclose(naive, eager, atol=1e-4)


def test_the_command_prints_ratios_and_stores_json(tmp_path, capsys):
    out = tmp_path / "fill.json"
    words = ["bench", "--op", "philox_noise", "--shape", "samples=2,elements=10", "--provider", "naive,eager"]
    with pytest.raises(SystemExit) as leaving:
        run(app, [*words, "--device", "cpu", "--repeats", "5", "--out", str(out)])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "vs eager" in shown
    assert "GB/s" not in shown
    stored = json.loads(out.read_text())
    assert stored["shape"] == {"samples": 2, "elements": 10}
    assert stored["environment"]["torch"] == torch.__version__


def test_the_list_names_every_op():
    assert list(list_ops()) == list(OPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"op": "softmax"}, "op must be one of"),
        ({"op": "ema_update", "shape": "rows=3"}, "tensors, elements"),
        ({"op": "ema_update", "backward": True}, "no gradients"),
        ({"op": "ema_update", "provider": "triton"}, "no Triton kernel"),
        ({"op": "philox_noise", "provider": "triton", "device": "cpu"}, "no Triton kernel"),
        ({"op": "ema_update", "repeats": 1}, "repeats"),
        ({"op": "ema_update", "dtype": "float64"}, "dtype"),
    ],
)
def test_bad_benchmark_requests_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        bench(**settings)
