"""`grouped_ffn`: sparse experts by one grouped matrix product per layer instead of a loop over experts."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from torch import Tensor

ACTIVATIONS = ("gelu", "swiglu")
DISPATCHES = ("auto", "grouped", "loop")
# Up to this many experts the loop is as fast on a CPU as the grouped product.
_CPU_LOOP_EXPERTS = 8


def group_by_expert(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts token slots by expert, and where each expert's slots end; no host wait.

    Args:
        expert_ids: Expert of each slot, int64 [T * k].
        num_experts: Number of experts E.

    Returns:
        order: int64 [T * k], stable: slots of one expert keep their order.
        ends: int32 [E], cumulative; `ends[e - 1]:ends[e]` are the sorted slots of expert e, possibly none.
    """
    order = torch.argsort(expert_ids, stable=True)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=expert_ids.device)
    # Not bincount, whose length depends on the data: that would wait for the device and break compilation.
    counts = counts.scatter_add(0, expert_ids, torch.ones_like(expert_ids))
    return order, counts.cumsum(0).to(torch.int32)


def grouped_ffn(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    *,
    activation: str = "gelu",
    dispatch: str = "auto",
) -> Tensor:
    """Return y_t = sum_j weights[t, j] FFN_{expert_ids[t, j]}(x_t), without a capacity limit.

    Differentiable in x, w1, w2 and weights. Every slot is computed once and added in a fixed order (no
    atomic add), forward and backward; an expert may have no token.

    Args:
        x: Tokens [T, d].
        w1: First layers [E, d, h'], h' = h for "gelu" and 2 h for "swiglu" (gate half first).
        w2: Second layers [E, h, d].
        expert_ids: Experts of each token, int64 [T, k], in [0, E).
        weights: Gates [T, k].
        activation: "gelu" (exact) or "swiglu" (silu(gate) * value).
        dispatch: "grouped" (`F.grouped_mm`), "loop" (one product per expert, any dtype) or "auto": grouped
            for bfloat16 on CUDA and, where strides allow it, for more than 8 experts on a CPU; else the loop.

    Returns:
        [T, d] in the dtype of x; gates are applied and summed in float32 (float64 for float64 x).

    Raises:
        InputError: When shapes do not fit, or "grouped" cannot take the dtype or the sizes.
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("dispatch", dispatch, DISPATCHES)
    _check_shapes(x, w1, w2, expert_ids, weights, activation)
    reason = why_not_grouped(x, w1, w2)
    if dispatch == "grouped" and reason:
        raise InputError(f"dispatch grouped is not possible: {reason}; use dispatch loop")
    if dispatch == "auto":
        dispatch = "grouped" if reason is None and _prefers_grouped(x, len(w1)) else "loop"
    order, ends = group_by_expert(expert_ids.reshape(-1), len(w1))
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    slots = _Permute.apply(x, order, inverse, expert_ids.shape[1])
    multiply = _grouped_product if dispatch == "grouped" else _looped_product
    hidden = multiply(slots, w1, ends)
    if activation == "swiglu":
        gate, value = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.gelu(hidden)
    out = multiply(hidden, w2, ends)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # A permutation visits every slot once, so this gather's backward is deterministic as well.
    out = out.index_select(0, inverse).reshape(*expert_ids.shape, x.shape[1])
    return (out.to(wide) * weights.to(wide)[..., None]).sum(dim=1).to(x.dtype)


def _check_shapes(x, w1, w2, expert_ids, weights, activation: str) -> None:
    width = 2 if activation == "swiglu" else 1
    fits = x.ndim == 2 and w1.ndim == w2.ndim == 3 and expert_ids.ndim == 2
    fits = fits and w1.shape[:2] == (len(w2), x.shape[1]) and w2.shape[2] == x.shape[1]
    fits = fits and w1.shape[2] == width * w2.shape[1] and expert_ids.shape == (len(x), weights.shape[-1])
    if not fits or weights.shape != expert_ids.shape or expert_ids.dtype != torch.int64:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, w1, w2, expert_ids, weights))
        raise InputError(
            f"need x [T, d], w1 [E, d, {'2 h' if width == 2 else 'h'}], w2 [E, h, d], int64 expert_ids "
            f"[T, k] and weights [T, k], got {shapes}"
        )


def why_not_grouped(x: Tensor, w1: Tensor, w2: Tensor) -> str | None:
    """Return why `F.grouped_mm` cannot take these tensors, or None when it can."""
    if not hasattr(F, "grouped_mm"):
        return "this torch has no grouped_mm (it came with torch 2.10)"
    if (
        x.dtype not in (torch.float32, torch.bfloat16, torch.float16)
        or w1.dtype != x.dtype
        or w2.dtype != x.dtype
    ):
        return (
            f"x, w1 and w2 must share float32, bfloat16 or float16, got {x.dtype}, {w1.dtype} and {w2.dtype}"
        )
    if x.is_cuda and x.dtype != torch.bfloat16:
        return f"on CUDA only bfloat16 is supported, got {x.dtype}"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "on CUDA it needs compute capability 8.0"
    multiple = 16 // x.element_size()
    if any(size % multiple for size in (*w1.shape[1:], *w2.shape[1:])):
        return f"row strides must be multiples of 16 bytes: d and h multiples of {multiple}"
    if x.shape[0] == 0:
        return "there are no tokens"
    return None


def _prefers_grouped(x: Tensor, num_experts: int) -> bool:
    return x.is_cuda or num_experts > _CPU_LOOP_EXPERTS


class _Permute(torch.autograd.Function):
    """Gather each token's k slots in sorted order; the backward is a gather too and adds in a fixed order."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse).unflatten(0, (-1, ctx.k)).sum(dim=1), None, None, None


def _grouped_product(slots: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(slots, weights, offs=ends)


def _looped_product(slots: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return torch.cat([part @ weight for part, weight in zip(slots.split(sizes), weights, strict=True)])


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    tokens, k, d, h, experts = (shape[name] for name in ("tokens", "k", "d", "h", "experts"))
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    logits = draw(tokens, experts)
    gates, ids = logits.softmax(dim=-1).topk(k, dim=-1)
    w1, w2 = draw(experts, d, h) / d**0.5, draw(experts, h, d) / h**0.5
    return draw(tokens, d).to(dtype), w1.to(dtype), w2.to(dtype), ids, gates.to(dtype)


def _naive(x: Tensor, w1: Tensor, w2: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """The usual code: find each expert's tokens, run them, add them back."""
    y = torch.zeros_like(x)
    for expert in range(len(w1)):
        token, slot = torch.where(expert_ids == expert)
        out = F.gelu(x[token] @ w1[expert]) @ w2[expert]
        y.index_add_(0, token, out * weights[token, slot][:, None])
    return y


def _bytes(shape: Mapping[str, int], itemsize: int, backward: bool) -> int:
    weights = 2 * shape["experts"] * shape["d"] * shape["h"]
    slots = 4 * shape["tokens"] * shape["k"] * shape["d"]
    return (3 if backward else 1) * itemsize * (weights + slots)


BENCHMARK = Benchmark(
    op="grouped_ffn",
    summary="sparse experts by grouped matrix products, with a deterministic un-permute",
    shape={"tokens": 1024, "k": 2, "d": 192, "h": 768, "experts": 16},
    inputs=_inputs,
    eager=grouped_ffn,
    kernel=None,
    naive=_naive,
    bytes_moved=_bytes,
    flops=lambda shape, backward: (12 if backward else 4)
    * shape["tokens"] * shape["k"] * shape["d"] * shape["h"],
    gradients=(0, 1, 2, 4),
)  # fmt: skip
