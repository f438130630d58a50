"""`philox_noise`: fill a batch with counter-based noise on its own device."""

import math
from collections.abc import Mapping, Sequence

import torch
from noiseworks.core import noise
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import HAS_TRITON, runs_triton
from torch import Tensor

KINDS = ("uniform", "normal", "exponential")
BLOCK = 4096

_DRAWS = {"uniform": noise.uniform, "normal": noise.normal, "exponential": noise.exponential}


def philox_noise(
    shape: Sequence[int],
    keys: Tensor,
    *,
    kind: str = "normal",
    counter0: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw `noise.normal`, `noise.uniform` or `noise.exponential` per (key, counter), by a kernel on CUDA.

    Args:
        shape: Shape of one sample.
        keys: One key per sample (`noise.SeedSpec.keys`), int64 [B]; their device is the result's.
        kind: "normal", "uniform" or "exponential".
        counter0: First counter, in [0, 2^62); uses ceil(prod(shape) / 4) counters.
        dtype: float32, bfloat16 or float16 (computed in float32), or float64 (never by the kernel).

    Returns:
        Noise [B, *shape]. Equal to the functions of `noise` to 1e-6, and bitwise so for "uniform".

    Raises:
        InputError: When the kind is unknown or a number is out of range.
    """
    check_choice("kind", kind, KINDS)
    check_number("counter0", counter0, low=0, high=2**62, high_open=True, integer=True)
    if dtype != torch.float64 and runs_triton(keys):
        return fill_op(keys, math.prod(shape), counter0, kind, dtype).reshape(len(keys), *shape)
    return _DRAWS[kind](keys, shape, counter0=counter0, dtype=dtype)


def eager(keys: Tensor, count: int, counter0: int, kind: str, dtype: torch.dtype) -> Tensor:
    """The definition: noise [B, count] of the functions of `noise`."""
    return _DRAWS[kind](keys, (count,), counter0=counter0, dtype=dtype)


@torch.library.custom_op("noiseworks::philox_noise", mutates_args=())
def fill_op(keys: Tensor, count: int, counter0: int, kind: str, dtype: torch.dtype) -> Tensor:
    """`eager` as a custom op, by the Triton kernel where it can run."""
    if dtype != torch.float64 and runs_triton(keys):
        return _launch(keys, count, counter0, kind, dtype)
    return eager(keys, count, counter0, kind, dtype)


@fill_op.register_fake
def _(keys, count, counter0, kind, dtype):
    return keys.new_empty((keys.shape[0], count), dtype=dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl
    from noiseworks.core.kernels.triton_math import exponential_of, random_words, uniform_of

    @triton.jit(do_not_specialize=["counter0"])
    def _fill_kernel(keys, out, count, counter0, KIND: tl.constexpr, BLOCK: tl.constexpr):
        row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        words = random_words(tl.load(keys + row), counter0, chunk * (BLOCK // 4), BLOCK // 4)
        if KIND == 0:
            value = uniform_of(words)
        elif KIND == 2:
            value = exponential_of(words)
        else:
            first, second = tl.split(tl.reshape(words, (BLOCK // 2, 2)))
            radius = tl.sqrt_rn(2.0 * exponential_of(first ^ 0xFFFFFFFF))
            angle = (second.to(tl.float32) + 0.5) * 1.4629180792671596e-09
            value = tl.interleave(radius * tl.cos(angle), radius * tl.sin(angle))
        at = chunk * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + row * count + at, value, mask=at < count)


def _launch(keys: Tensor, count: int, counter0: int, kind: str, dtype: torch.dtype) -> Tensor:
    out = torch.empty((len(keys), count), dtype=dtype, device=keys.device)
    if out.numel():
        grid = (len(keys), -(-count // BLOCK))
        with torch.cuda.device_of(keys):
            _fill_kernel[grid](keys, out, count, counter0, KIND=KINDS.index(kind), BLOCK=BLOCK, num_warps=8)
    return out


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    return noise.SeedSpec(0).keys(range(shape["samples"]), device), shape["elements"], 0, "normal", dtype


def _naive(keys: Tensor, count: int, counter0: int, kind: str, dtype: torch.dtype) -> Tensor:
    """The usual code: one CPU generator per sample, drawn one after the other and moved."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(keys))]
    return noise.torch_compat_normal(generators, (count,), dtype=dtype, device=keys.device)


BENCHMARK = Benchmark(
    op="philox_noise",
    summary="fill a batch with noise that depends on (key, counter) alone",
    shape={"samples": 4, "elements": 65536},
    inputs=_inputs,
    eager=eager,
    kernel=fill_op,
    naive=_naive,
    bytes_moved=lambda shape, itemsize, backward: shape["samples"] * shape["elements"] * itemsize,
    # Per element: about 12 integer operations of Philox, 20 of the logarithm, 15 of root, sine and cosine.
    flops=lambda shape, backward: 50 * shape["samples"] * shape["elements"],
)
