"""Which implementation of a kernel runs, chosen per call from the tensors.

The environment variable `NOISEWORKS_KERNELS` is read at import: `auto` (the default) takes the Triton
kernel where it can run and the eager function elsewhere, `eager` always takes the eager function, and
`triton` refuses a call that Triton cannot take, naming the reason. With `TRITON_INTERPRET=1` the kernels
also run on CPU tensors, slowly: that is for tests.
"""

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from torch import Tensor

MODE = os.environ.get("NOISEWORKS_KERNELS", "auto")
check_choice("the environment variable NOISEWORKS_KERNELS", MODE, ("auto", "eager", "triton"))
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
# Kernels are defined only where they can run: importing Triton on a machine without a GPU would be wasted
# time.
HAS_TRITON = find_spec("triton") is not None and (INTERPRET or MODE == "triton" or torch.cuda.is_available())

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.bool)


def why_not_triton(*tensors: Tensor | None) -> str | None:
    """Return why the Triton kernel cannot take these tensors, or None when it can.

    Args:
        tensors: The tensor arguments of an op; None stands for an argument that is not given.
    """
    if not HAS_TRITON:
        return "Triton is not installed or there is no CUDA device"
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        if tensor.device != given[0].device:
            return f"the tensors are on several devices ({given[0].device} and {tensor.device})"
        if not (tensor.is_cuda or (INTERPRET and tensor.device.type == "cpu")):
            return f"the tensors are on {tensor.device}"
        if tensor.dtype not in _FLOATS + _INTEGERS:
            return f"the dtype {tensor.dtype} is not supported"
        if tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return "the last dimension of a tensor is not contiguous"
    return None


def runs_triton(*tensors: Tensor | None) -> bool:
    """Return whether a call with these tensors takes the Triton kernel.

    Raises:
        InputError: When the mode is `triton` and the kernel cannot take them.
    """
    if MODE == "eager":
        return False
    reason = why_not_triton(*tensors)
    if reason and MODE == "triton":
        raise InputError(f"NOISEWORKS_KERNELS=triton, but {reason}; set it to auto to fall back")
    return reason is None


@functools.cache
def compiled(function: Callable) -> Callable:
    """Return `torch.compile` of an eager function, compiled once per process with dynamic shapes."""
    return torch.compile(function, dynamic=True)


def fused(function: Callable, *tensors: Tensor) -> Callable:
    """Return the compiled function for CUDA tensors unless the mode is `eager`, else the function itself.

    Inside another `torch.compile` the function itself is returned: the outer compilation fuses it.
    """
    use = MODE != "eager" and not torch.compiler.is_compiling() and all(tensor.is_cuda for tensor in tensors)
    return compiled(function) if use else function
