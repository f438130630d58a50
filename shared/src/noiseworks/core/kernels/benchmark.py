"""What an op's file says about how to measure it; `bench` does the measuring."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Benchmark:
    """How to measure one op.

    Attributes:
        op: The op's name.
        summary: What it does, in one line.
        shape: Default sizes by name, small enough for a CPU.
        inputs: Makes the positional arguments from sizes, dtype and device.
        eager: The eager definition; also what provider `compile` compiles.
        kernel: The custom op that runs Triton, or None when the op has no Triton kernel.
        naive: The usual code that the op replaces, with the same arguments.
        bytes_moved: Bytes that must be read and written at least, from sizes, item size of the dtype and
            whether the backward pass is included.
        flops: Floating-point and integer operations at least, from sizes and whether the backward is
            included.
        gradients: Positions of the arguments to differentiate; empty for an op without gradients.
        in_place: Whether the op overwrites its arguments.
    """

    op: str
    summary: str
    shape: Mapping[str, int]
    inputs: Callable[[Mapping[str, int], torch.dtype, torch.device], tuple]
    eager: Callable
    kernel: Callable | None
    naive: Callable
    bytes_moved: Callable[[Mapping[str, int], int, bool], int]
    flops: Callable[[Mapping[str, int], bool], int]
    gradients: tuple[int, ...] = ()
    in_place: bool = False
