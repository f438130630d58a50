"""Measuring the ops: time, bandwidth, temporary memory, and ratios to eager and compiled code.

On a CPU only ratios within one run are reported: its times say nothing about a GPU, and machines differ.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark

OPS = {
    "gumbel_argmax_conf": "gumbel:BENCHMARK",
    "selective_logp": "logp:BENCHMARK",
    "adaln_modulate": "adaln:BENCHMARK",
    "philox_noise": "fill:BENCHMARK",
    "grouped_ffn": "experts:BENCHMARK",
    "block_gather_attention": "attention:BENCHMARK",
    "cfg_step_reduce": "guidance:BENCHMARK",
    "pgd_project": "multi:BENCHMARK",
    "ema_update": "multi:BENCHMARK_EMA",
}
PROVIDERS = ("naive", "eager", "compile", "triton")
_COPY_BYTES = 2**29
# Larger than the last-level cache of current GPUs; writing it before each run makes a run start from memory.
_FLUSH_BYTES = 2**28


@dataclass(frozen=True)
class Timing:
    """One provider's result.

    Attributes:
        provider: "naive", "eager", "compile" or "triton".
        milliseconds: Median time of a call.
        low: 20 % percentile in milliseconds.
        high: 80 % percentile in milliseconds.
        ratio_to_eager: Time of eager divided by this one's; above 1 is faster. None when eager was not run.
        ratio_to_compile: The same against the compiled function.
        gigabytes_per_second: Least bytes over median time; None on a CPU.
        share_of_copy: That bandwidth over the measured one of a device copy; None on a CPU.
        temporary_bytes: Peak memory allocated beyond arguments and results; None on a CPU.
    """

    provider: str
    milliseconds: float
    low: float
    high: float
    ratio_to_eager: float | None = None
    ratio_to_compile: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    temporary_bytes: int | None = None


@dataclass(frozen=True)
class BenchResult:
    """What `bench` measured.

    Attributes:
        op: Name of the op.
        shape: Sizes by name.
        dtype: Name of the dtype.
        device: Name of the device's model.
        backward: Whether the backward pass is included.
        least_bytes: Bytes that must be read and written at least.
        operations: Operations that must be done at least.
        copy_gigabytes_per_second: Measured bandwidth of a device copy, read plus write; None on a CPU.
        timings: One entry per provider.
        environment: Versions of Python, torch and Triton, machine and threads.
    """

    op: str
    shape: Mapping[str, int]
    dtype: str
    device: str
    backward: bool
    least_bytes: int
    operations: int
    copy_gigabytes_per_second: float | None
    timings: tuple[Timing, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def __rich__(self):
        """Return a table; on a CPU it shows ratios and no times."""
        from rich.table import Table

        cuda = self.copy_gigabytes_per_second is not None
        sizes = " ".join(f"{name}={size}" for name, size in self.shape.items())
        passes = "forward and backward" if self.backward else "forward"
        title = f"{self.op} {sizes} {self.dtype}, {passes}, {self.least_bytes:,} bytes, {self.device}"
        table = Table(title=title, title_justify="left")
        columns = ["provider", "vs eager", "vs compile", "spread"]
        for column in columns + (["ms", "GB/s", "of copy", "temporary MB"] if cuda else []):
            table.add_column(column)
        for timing in self.timings:
            spread = f"{timing.low / timing.milliseconds:.2f} to {timing.high / timing.milliseconds:.2f}"
            row = [timing.provider, _times(timing.ratio_to_eager), _times(timing.ratio_to_compile), spread]
            if cuda:
                row += [f"{timing.milliseconds:.4f}", f"{timing.gigabytes_per_second:.0f}"]
                row += [f"{timing.share_of_copy:.0%}", f"{timing.temporary_bytes / 1e6:.1f}"]
            table.add_row(*row)
        return table


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def load_benchmark(op: str) -> Benchmark:
    """Return how to measure an op.

    Raises:
        InputError: When there is no such op.
    """
    check_choice("op", op, tuple(OPS))
    module, name = OPS[op].split(":")
    return getattr(import_module(f"noiseworks.core.kernels.{module}"), name)


def list_ops() -> dict[str, str]:
    """List the ops.

    Returns:
        Op -> what it does, what it is made of, and its default sizes.
    """
    found = {}
    for op in OPS:
        benchmark = load_benchmark(op)
        kind = "Triton on CUDA" if benchmark.kernel else "torch"
        sizes = ",".join(f"{name}={size}" for name, size in benchmark.shape.items())
        found[op] = f"{benchmark.summary}; {kind}; {sizes}"
    return found


def bench(
    *,
    op: str,
    shape: str = "",
    provider: str = "naive,eager,compile,triton",
    dtype: str = "float32",
    device: str = "auto",
    backward: bool = False,
    repeats: int = 50,
    out: Path | None = None,
) -> BenchResult:
    """Measure an op against the usual code, its eager definition and `torch.compile` of that.

    Args:
        op: Name of the op, see `noiseworks kernels list`.
        shape: Sizes that differ from the op's defaults, as `rows=1024,vocabulary=126464`.
        provider: Comma-separated choice of naive, eager, compile and triton; triton is left out of the
            default where it cannot run and refused when it is named alone.
        dtype: float32, bfloat16 or float16.
        device: auto, cpu or cuda.
        backward: Whether to time forward and backward together; only for ops with gradients.
        repeats: Timed calls per provider, at least 5.
        out: JSON file for the result.

    Returns:
        The measurements; see `BenchResult`.

    Raises:
        InputError: When a name, a size or a provider is not possible; nothing is measured then.
    """
    benchmark = load_benchmark(op)
    sizes = parse_shape(shape, benchmark)
    where, kind = resolve_device(device), resolve_dtype(dtype)
    check_number("repeats", repeats, low=5, integer=True)
    if backward and not benchmark.gradients:
        raise InputError(f"{op} has no gradients; leave out backward")
    providers = parse_providers(provider, benchmark, where)
    if out is not None and (out.is_dir() or out.suffix != ".json"):
        raise InputError(f"out must be the name of a .json file, got {out}")
    arguments = benchmark.inputs(sizes, kind, where)
    copy = _copy_bandwidth(where) if where.type == "cuda" else None
    least = benchmark.bytes_moved(sizes, kind.itemsize, backward)
    measured = [_measure(benchmark, name, arguments, backward, repeats, least, copy) for name in providers]
    result = BenchResult(
        op, sizes, dtype, _device_name(where), backward, least, benchmark.flops(sizes, backward), copy,
        tuple(_with_ratios(timing, measured) for timing in measured), _environment(),
    )  # fmt: skip
    if out is not None:
        atomic_write(out, json.dumps(asdict(result), indent=2) + "\n")
    return result


def parse_shape(text: str, benchmark: Benchmark) -> dict[str, int]:
    """Return an op's sizes with those of `name=size,...` put in.

    Raises:
        InputError: When a name is unknown or a size is no whole number of at least 0.
    """
    sizes = dict(benchmark.shape)
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name.strip() not in sizes or not size.strip().isdecimal():
            known = ", ".join(sizes)
            raise InputError(f"shape must be like name=size with a name of {known}, got {part!r}")
        sizes[name.strip()] = int(size)
    return sizes


def parse_providers(text: str, benchmark: Benchmark, device: torch.device) -> list[str]:
    """Return the providers to run.

    Raises:
        InputError: When one is unknown, or triton is the only one and cannot run.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        check_choice("provider", name, PROVIDERS)
    possible = benchmark.kernel is not None and device.type == "cuda" and find_spec("triton") is not None
    if "triton" in names and not possible:
        if names == ["triton"]:
            raise InputError(
                f"{benchmark.op} has no Triton kernel that runs on {device.type}; name other providers"
            )
        names.remove("triton")
    return names


def _measure(
    benchmark: Benchmark, provider: str, arguments: tuple, backward: bool, repeats: int, least: int,
    copy: float | None,
) -> Timing:  # fmt: skip
    functions = {"naive": benchmark.naive, "eager": benchmark.eager, "triton": benchmark.kernel}
    function = torch.compile(benchmark.eager) if provider == "compile" else functions[provider]
    call = (
        _with_backward(function, arguments, benchmark.gradients) if backward else lambda: function(*arguments)
    )
    cuda = copy is not None
    with torch.no_grad() if not backward else torch.enable_grad():
        times = sorted((_cuda_times if cuda else _cpu_times)(call, repeats))
        temporary = _temporary_bytes(call) if cuda else None
    median = statistics.median(times)
    bandwidth = least / median / 1e6 if cuda else None
    low, high = times[len(times) // 5], times[-1 - len(times) // 5]
    share = bandwidth / copy if cuda else None
    return Timing(provider, median, low, high, None, None, bandwidth, share, temporary)


def _with_backward(function: Callable, arguments: tuple, positions: tuple[int, ...]) -> Callable:
    leaves = [arguments[i].detach().clone().requires_grad_() for i in positions]
    filled = list(arguments)
    for i, leaf in zip(positions, leaves, strict=True):
        filled[i] = leaf

    def call():
        result = function(*filled)
        output = result if isinstance(result, torch.Tensor) else result[0]
        return torch.autograd.grad(output, leaves, torch.ones_like(output))

    return call


def _cpu_times(call: Callable, repeats: int) -> list[float]:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _cuda_times(call: Callable, repeats: int) -> list[float]:
    for _ in range(10):
        call()
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _temporary_bytes(call: Callable) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated()
    del result
    return torch.cuda.max_memory_allocated() - max(kept, before)


def _copy_bandwidth(device: torch.device) -> float:
    """Return the measured bandwidth of a copy in GB/s, counting bytes read and written."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = _cuda_times(lambda: target.copy_(source), 20)
    return 2 * _COPY_BYTES / statistics.median(times) / 1e6


def _with_ratios(timing: Timing, measured: list[Timing]) -> Timing:
    by_name = {other.provider: other.milliseconds for other in measured}
    values = asdict(timing)
    for reference in ("eager", "compile"):
        if reference in by_name:
            values[f"ratio_to_{reference}"] = by_name[reference] / timing.milliseconds
    return Timing(**values)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"


def _environment() -> dict[str, str]:
    triton = import_module("triton").__version__ if find_spec("triton") else "not installed"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "cuda": str(torch.version.cuda) if torch.cuda.is_available() else "none",
    }
