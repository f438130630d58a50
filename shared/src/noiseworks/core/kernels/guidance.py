"""`cfg_step_reduce`: classifier-free guidance, an affine solver step and its per-sample statistics at once.

Compiled by Inductor on CUDA; a hand-written kernel would not pay: an image latent is bound by launches,
and a video latent by memory, which the compiled function already reads once.
"""

from collections.abc import Mapping

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import fused
from torch import Tensor


def cfg_step_reduce(
    x: Tensor, e_u: Tensor, e_c: Tensor, w: Tensor, c_x: Tensor, c_e: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return c_x x + c_e e + noise with e = e_u + w (e_c - e_u), and statistics of the predictions.

    Every deterministic one-step solver (DDIM, Euler, first-order DPM-Solver) is affine in x and the
    prediction.

    Args:
        x: Current sample [B, ...].
        e_u: Unconditional prediction [B, ...].
        e_c: Conditional prediction [B, ...].
        w: Guidance weight, 1 meaning the conditional prediction, [B].
        c_x: Factor of x, [B].
        c_e: Factor of the guided prediction, [B].
        noise: Already scaled noise to add, [B, ...], or None.

    Returns:
        The next sample in the dtype of x, computed in float32 (float64 for float64 x), and statistics [B,
        4]: the inner product of e_u and e_c, and the squared norms of e_u, e_c and e.

    Raises:
        InputError: When shapes do not fit.
    """
    samples = x.shape[:1]
    if e_u.shape != x.shape or e_c.shape != x.shape or any(c.shape != samples for c in (w, c_x, c_e)):
        raise InputError(f"need e_u and e_c shaped as x {tuple(x.shape)}, and w, c_x and c_e of shape [B]")
    if noise is not None and noise.shape != x.shape:
        raise InputError(f"noise must be shaped as x {tuple(x.shape)}, got {tuple(noise.shape)}")
    return fused(eager, x)(x, e_u, e_c, w, c_x, c_e, noise)


def eager(
    x: Tensor, e_u: Tensor, e_c: Tensor, w: Tensor, c_x: Tensor, c_e: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition; arguments as `cfg_step_reduce`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, c = e_u.to(wide).flatten(1), e_c.to(wide).flatten(1)
    e = u + w.to(wide)[:, None] * (c - u)
    following = c_x.to(wide)[:, None] * x.to(wide).flatten(1) + c_e.to(wide)[:, None] * e
    if noise is not None:
        following = following + noise.to(wide).flatten(1)
    stats = torch.stack([(u * c).sum(1), (u * u).sum(1), (c * c).sum(1), (e * e).sum(1)], dim=1)
    return following.reshape(x.shape).to(x.dtype), stats


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    generator = torch.Generator(device).manual_seed(0)
    size = (shape["samples"], shape["elements"])
    x, u, c = (torch.randn(size, generator=generator, device=device).to(dtype) for _ in range(3))
    w, c_x, c_e = (torch.full(size[:1], value, device=device) for value in (7.5, 0.9, -0.2))
    return x, u, c, w, c_x, c_e, None


def _naive(x, e_u, e_c, w, c_x, c_e, noise) -> tuple[Tensor, Tensor]:
    """The usual code: one operation after the other, norms by `torch.linalg`."""
    w, c_x, c_e = (factor[:, None].to(x.dtype) for factor in (w, c_x, c_e))
    e = e_u + w * (e_c - e_u)
    norms = [torch.linalg.vector_norm(tensor.float(), dim=1) ** 2 for tensor in (e_u, e_c, e)]
    return c_x * x + c_e * e, torch.stack([(e_u.float() * e_c.float()).sum(1), *norms], dim=1)


BENCHMARK = Benchmark(
    op="cfg_step_reduce",
    summary="guidance, an affine solver step and per-sample statistics at once (compiled, no Triton)",
    shape={"samples": 4, "elements": 65536},
    inputs=_inputs,
    eager=eager,
    kernel=None,
    naive=_naive,
    bytes_moved=lambda shape, itemsize, backward: 4 * shape["samples"] * shape["elements"] * itemsize,
    flops=lambda shape, backward: 14 * shape["samples"] * shape["elements"],
)
