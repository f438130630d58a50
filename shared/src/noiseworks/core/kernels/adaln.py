"""`adaln_modulate`: normalise tokens and modulate them by a condition, forward and backward.

The adaptive layer norm of diffusion transformers (Peebles & Xie 2023, section 3.2): y = norm(h) (1 +
scale) + shift with a norm that has no weights of its own. With a gate and a residual, h = residual + gate
x closes the previous branch in the same pass.
"""

from collections.abc import Mapping

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import HAS_TRITON, runs_triton
from torch import Tensor

NORMS = ("layer", "rms")
# Tokens whose gradients one program adds up; the partial sums are then added in a fixed order.
ROWS = 16
MAX_CHANNELS = 16384


def adaln_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: str = "layer",
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return norm(h) (1 + scale) + shift, with h = x, or h = residual + gate x when those are given.

    Differentiable in every tensor. Statistics and modulation are computed in float32 (float64 for float64 x).

    Args:
        x: Tokens [B, N, C]; with `gate` and `residual`, the output of the previous branch.
        scale: Per sample [B, C] or per token [B, N, C].
        shift: Shaped as `scale`.
        gate: Shaped as `scale`; only together with `residual`.
        residual: The residual stream before the branch, [B, N, C].
        norm: "layer" (subtract the mean, divide by the standard deviation) or "rms" (divide by the root
            mean square).
        eps: Added to the variance or mean square.

    Returns:
        y [B, N, C] in the dtype of x; with `gate` and `residual` the pair (y, h).

    Raises:
        InputError: When shapes do not fit or the norm is unknown.
    """
    check_choice("norm", norm, NORMS)
    per_sample = (x.shape[0], x.shape[-1])
    if x.ndim != 3 or scale.shape not in (per_sample, x.shape) or shift.shape != scale.shape:
        shapes = f"{tuple(x.shape)}, {tuple(scale.shape)}, {tuple(shift.shape)}"
        raise InputError(f"need x [B, N, C] and scale, shift both [B, C] or [B, N, C], got {shapes}")
    if (gate is None) != (residual is None):
        raise InputError("gate and residual belong together: give both or neither")
    if gate is not None and (gate.shape != scale.shape or residual.shape != x.shape):
        raise InputError(
            f"gate must be shaped as scale and residual as x, got {gate.shape} and {residual.shape}"
        )
    run = adaln_op if _can_launch(x, scale, shift, gate, residual) else eager
    y, h, _, _ = run(x, scale, shift, gate, residual, norm == "rms", eps)
    return y if residual is None else (y, h)


def _can_launch(x: Tensor, *others: Tensor | None) -> bool:
    return 0 < x.shape[-1] <= MAX_CHANNELS and runs_triton(x, *others)


def _per_token(modulation: Tensor, wide: torch.dtype) -> Tensor:
    return (modulation if modulation.ndim == 3 else modulation[:, None, :]).to(wide)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def eager(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The definition, in plain torch.

    Returns:
        y [B, N, C]; h [B, N, C] in the dtype of x (empty without a residual: h is then x); mean [B, N]
        (zeros for rms) and reciprocal standard deviation [B, N] in the computing dtype.
    """
    wide = _wide(x)
    h = x if residual is None else (residual.to(wide) + _per_token(gate, wide) * x.to(wide)).to(x.dtype)
    full = h.to(wide)
    mean = torch.zeros_like(full[..., 0]) if rms else full.mean(dim=-1)
    centred = full - mean[..., None]
    rstd = torch.rsqrt(centred.square().mean(dim=-1) + eps)
    y = centred * rstd[..., None] * (1 + _per_token(scale, wide)) + _per_token(shift, wide)
    return y.to(x.dtype), x.new_empty(0) if residual is None else h, mean, rstd


def eager_backward(
    g_y: Tensor, g_h: Tensor, h: Tensor, x: Tensor, scale: Tensor, gate: Tensor | None,
    mean: Tensor, rstd: Tensor, rms: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, scale, shift, gate and residual (the last two empty without a residual).

    With n = (h - mean) rstd and q = g_y (1 + scale): g_h += rstd (q - mean(q) - n mean(q n)), without
    mean(q) for rms; g_scale = g_y n, g_shift = g_y, g_gate = g_h x, summed over tokens where the
    modulation is per sample.

    Args:
        g_y: Gradient of y, [B, N, C].
        g_h: Gradient of h, [B, N, C]; read only with a gate.
        h: What was normalised, [B, N, C].
        x: The branch output, [B, N, C].
        scale: [B, C] or [B, N, C].
        gate: As `scale`, or None.
        mean: [B, N].
        rstd: [B, N].
        rms: Whether the norm is "rms".
    """
    wide = _wide(h)
    g = g_y.to(wide)
    n = (h.to(wide) - mean[..., None]) * rstd[..., None]
    q = g * (1 + _per_token(scale, wide))
    centre = 0 if rms else q.mean(dim=-1, keepdim=True)
    g_in = rstd[..., None] * (q - centre - n * (q * n).mean(dim=-1, keepdim=True))

    def reduced(gradient: Tensor) -> Tensor:
        # A copy: without one the gradient of shift could be g_y itself, and an op must not return its input.
        return (gradient if scale.ndim == 3 else gradient.sum(dim=1)).to(scale.dtype, copy=True)

    if gate is None:
        return g_in.to(x.dtype), reduced(g * n), reduced(g), x.new_empty(0), x.new_empty(0)
    g_in = g_in + g_h.to(wide)
    g_x = (g_in * _per_token(gate, wide)).to(x.dtype)
    return g_x, reduced(g * n), reduced(g), reduced(g_in * x.to(wide)), g_in.to(x.dtype)


@torch.library.custom_op("noiseworks::adaln_modulate", mutates_args=())
def adaln_op(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`eager` as a custom op with its own backward, by the Triton kernel where it can run."""
    if _can_launch(x, scale, shift, gate, residual):
        return _launch(x, scale, shift, gate, residual, rms, eps)
    return eager(x, scale, shift, gate, residual, rms, eps)


@adaln_op.register_fake
def _(x, scale, shift, gate, residual, rms, eps):
    h = x.new_empty(0 if residual is None else x.shape)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=_wide(x)) for _ in range(2))
    return x.new_empty(x.shape), h, mean, rstd


@torch.library.custom_op("noiseworks::adaln_modulate_backward", mutates_args=())
def adaln_backward_op(
    g_y: Tensor, g_h: Tensor, h: Tensor, x: Tensor, scale: Tensor, gate: Tensor | None,
    mean: Tensor, rstd: Tensor, rms: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`eager_backward` as a custom op, by the Triton kernel where it can run."""
    if _can_launch(h, x, scale, gate):
        return _launch_backward(g_y, g_h, h, x, scale, gate, mean, rstd, rms)
    return eager_backward(g_y, g_h, h, x, scale, gate, mean, rstd, rms)


@adaln_backward_op.register_fake
def _(g_y, g_h, h, x, scale, gate, mean, rstd, rms):
    empty = x.new_empty
    g_gate, g_residual = (
        (empty(0), empty(0)) if gate is None else (scale.new_empty(scale.shape), empty(x.shape))
    )
    return empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape), g_gate, g_residual


def _setup(ctx, inputs, output):
    x, scale, _, gate, residual, rms, _ = inputs
    _, h, mean, rstd = output
    ctx.rms = rms
    ctx.save_for_backward(x, scale, gate, x if residual is None else h, mean, rstd)


def _backward(ctx, g_y, g_h, _g_mean, _g_rstd):
    x, scale, gate, h, mean, rstd = ctx.saved_tensors
    g_x, g_scale, g_shift, g_gate, g_residual = adaln_backward_op(
        g_y, g_h, h, x, scale, gate, mean, rstd, ctx.rms
    )
    if gate is None:
        g_gate = g_residual = None
    return g_x, g_scale, g_shift, g_gate, g_residual, None, None


adaln_op.register_autograd(_backward, setup_context=_setup)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _forward_kernel(
        x, scale, shift, gate, residual, y, h, mean, rstd,
        tokens, channels, scale_b, scale_n, shift_b, shift_n, gate_b, gate_n, eps,
        RMS: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Normalise and modulate one token."""
        row = tl.program_id(0).to(tl.int64)
        sample, token = row // tokens, row % tokens
        c = tl.arange(0, BLOCK)
        inside = c < channels
        value = tl.load(x + row * channels + c, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            g = tl.load(gate + sample * gate_b + token * gate_n + c, mask=inside, other=0.0).to(tl.float32)
            stream = tl.load(residual + row * channels + c, mask=inside, other=0.0).to(tl.float32)
            rounded = (stream + g * value).to(h.dtype.element_ty)
            tl.store(h + row * channels + c, rounded, mask=inside)
            value = rounded.to(tl.float32)
        average = 0.0
        if not RMS:
            average = tl.sum(value, axis=0) / channels
        centred = tl.where(inside, value - average, 0.0)
        inverse = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=0) / channels + eps)
        s = tl.load(scale + sample * scale_b + token * scale_n + c, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(shift + sample * shift_b + token * shift_n + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * channels + c, centred * inverse * (1.0 + s) + t, mask=inside)
        tl.store(mean + row, average)
        tl.store(rstd + row, inverse)

    @triton.jit
    def _backward_kernel(
        g_y, g_h, h, x, scale, gate, mean, rstd, g_x, g_scale, g_shift, g_gate, g_residual,
        tokens, channels, scale_b, scale_n, gate_b, gate_n,
        RMS: tl.constexpr, GATED: tl.constexpr, PER_TOKEN: tl.constexpr,
        ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Gradients of ROWS tokens of one sample; those of a per-sample modulation are summed over them."""
        sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        c = tl.arange(0, BLOCK)
        sum_scale = tl.zeros((BLOCK,), dtype=tl.float32)
        sum_shift = tl.zeros((BLOCK,), dtype=tl.float32)
        sum_gate = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in range(ROWS):
            token = part * ROWS + i
            row = sample * tokens + token
            at = row * channels + c
            inside = (c < channels) & (token < tokens)
            g = tl.load(g_y + at, mask=inside, other=0.0).to(tl.float32)
            average = tl.load(mean + row, mask=token < tokens, other=0.0)
            inverse = tl.load(rstd + row, mask=token < tokens, other=0.0)
            n = (tl.load(h + at, mask=inside, other=0.0).to(tl.float32) - average) * inverse
            n = tl.where(inside, n, 0.0)
            s = tl.load(scale + sample * scale_b + token * scale_n + c, mask=inside, other=0.0).to(tl.float32)
            q = g * (1.0 + s)
            centre = 0.0
            if not RMS:
                centre = tl.sum(q, axis=0) / channels
            g_in = inverse * (q - centre - n * (tl.sum(q * n, axis=0) / channels))
            if PER_TOKEN:
                tl.store(g_scale + at, g * n, mask=inside)
                tl.store(g_shift + at, g, mask=inside)
            else:
                sum_scale += g * n
                sum_shift += g
            if GATED:
                g_in += tl.load(g_h + at, mask=inside, other=0.0).to(tl.float32)
                tl.store(g_residual + at, g_in, mask=inside)
                branch = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
                if PER_TOKEN:
                    tl.store(g_gate + at, g_in * branch, mask=inside)
                else:
                    sum_gate += tl.where(inside, g_in * branch, 0.0)
                factor = tl.load(gate + sample * gate_b + token * gate_n + c, mask=inside, other=0.0)
                g_in = g_in * factor.to(tl.float32)
            tl.store(g_x + at, g_in, mask=inside)
        if not PER_TOKEN:
            to = (sample * tl.num_programs(1) + part) * channels + c
            tl.store(g_scale + to, sum_scale, mask=c < channels)
            tl.store(g_shift + to, sum_shift, mask=c < channels)
            if GATED:
                tl.store(g_gate + to, sum_gate, mask=c < channels)


def _strides(modulation: Tensor | None) -> tuple[int, int]:
    """Return the strides of sample and token; 0 for tokens that share one modulation."""
    if modulation is None:
        return 0, 0
    return modulation.stride(0), modulation.stride(1) if modulation.ndim == 3 else 0


def _block(channels: int) -> tuple[int, int]:
    """Return the block (a power of two that holds the channels) and the warps per program."""
    block = 1 << (channels - 1).bit_length()
    return block, 4 if block <= 2048 else 8


def _launch(x, scale, shift, gate, residual, rms, eps):
    samples, tokens, channels = x.shape
    x = x.contiguous()
    y, h = torch.empty_like(x), x.new_empty(0 if residual is None else x.shape)
    mean, rstd = (torch.empty((samples, tokens), dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel():
        block, warps = _block(channels)
        with torch.cuda.device_of(x):
            _forward_kernel[(samples * tokens,)](
                x, scale, shift, gate, None if residual is None else residual.contiguous(), y, h, mean, rstd,
                tokens, channels, *_strides(scale), *_strides(shift), *_strides(gate), eps,
                RMS=rms, GATED=residual is not None, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return y, h, mean, rstd


def _launch_backward(g_y, g_h, h, x, scale, gate, mean, rstd, rms):
    samples, tokens, channels = x.shape
    per_token, gated = scale.ndim == 3, gate is not None
    parts = -(-tokens // ROWS)
    x, h, g_y, g_h = x.contiguous(), h.contiguous(), g_y.contiguous(), g_h.contiguous()
    sums = {"dtype": scale.dtype if per_token else torch.float32, "device": x.device}
    shape = x.shape if per_token else (samples, parts, channels)
    g_x, g_residual = torch.empty_like(x), x.new_empty(x.shape if gated else 0)
    g_scale, g_shift = torch.empty(shape, **sums), torch.empty(shape, **sums)
    g_gate = torch.empty(shape, **sums) if gated else scale.new_empty(0)
    if x.numel():
        block, warps = _block(channels)
        with torch.cuda.device_of(x):
            _backward_kernel[(samples, parts)](
                g_y, g_h, h, x, scale, gate, mean, rstd, g_x, g_scale, g_shift, g_gate, g_residual,
                tokens, channels, *_strides(scale), *_strides(gate),
                RMS=rms, GATED=gated, PER_TOKEN=per_token, ROWS=ROWS, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    if not per_token:
        g_scale, g_shift = g_scale.sum(dim=1).to(scale.dtype), g_shift.sum(dim=1).to(scale.dtype)
        g_gate = g_gate.sum(dim=1).to(scale.dtype) if gated else g_gate
    return g_x, g_scale, g_shift, g_gate, g_residual


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    samples, tokens, channels = shape["samples"], shape["tokens"], shape["channels"]
    generator = torch.Generator(device).manual_seed(0)
    modulated = (samples, tokens, channels) if shape["per_token"] else (samples, channels)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    return draw(samples, tokens, channels), draw(*modulated), draw(*modulated), None, None, False, 1e-6


def _naive(x, scale, shift, gate, residual, rms, eps) -> tuple[Tensor]:
    """The usual code: torch's layer norm, then multiply and add in the dtype of x."""
    scale, shift = (m if m.ndim == 3 else m[:, None, :] for m in (scale, shift))
    return (torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift,)


def _bytes(shape: Mapping[str, int], itemsize: int, backward: bool) -> int:
    tokens = shape["samples"] * shape["tokens"]
    modulation = tokens if shape["per_token"] else shape["samples"]
    forward = 2 * tokens + 2 * modulation
    return shape["channels"] * itemsize * (forward + (3 * tokens + 3 * modulation if backward else 0))


BENCHMARK = Benchmark(
    op="adaln_modulate",
    summary="normalise and modulate tokens by a condition, forward and backward",
    shape={"samples": 2, "tokens": 256, "channels": 384, "per_token": 0},
    inputs=_inputs,
    eager=eager,
    kernel=adaln_op,
    naive=_naive,
    bytes_moved=_bytes,
    flops=lambda shape, backward: (22 if backward else 8)
    * shape["samples"] * shape["tokens"] * shape["channels"],
    gradients=(0, 1, 2),
)  # fmt: skip
