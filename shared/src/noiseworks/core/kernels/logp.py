"""`selective_logp`: log-probabilities of given tokens, forward and backward, without a softmax in memory.

Preference and policy-gradient losses and likelihood bounds need log p of one token per row out of a
vocabulary. The kernel reads the logits once forward, and once more backward to write their gradient.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import HAS_TRITON, runs_triton
from torch import Tensor

# Tokens per step of the loop over the vocabulary.
BLOCK_V = 4096
DPO_VARIANTS = ("sigmoid", "hinge", "ipo")


class TokenLogp(NamedTuple):
    """What `selective_logp` returns, float32 (float64 for float64 logits), shaped as the ids.

    Attributes:
        logp: log p of the given tokens; 0 where the id is negative (ignored).
        lse: Log-sum-exp of the logits.
        entropy: Entropy of the row in nats, or None when it was not asked for.
    """

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None


def selective_logp(logits: Tensor, ids: Tensor, *, entropy: bool = False) -> TokenLogp:
    """Return log softmax(logits) at the given ids; differentiable in the logits.

    Args:
        logits: [..., V].
        ids: Token ids, int64 [...]; negative ids are ignored (log-probability 0, no gradient), ids must be
            below V.
        entropy: Whether to return the entropy as well.

    Raises:
        InputError: When shapes or dtypes do not fit.
    """
    if logits.shape[:-1] != ids.shape or ids.dtype != torch.int64:
        shapes = f"{tuple(logits.shape)} and {ids.dtype} {tuple(ids.shape)}"
        raise InputError(f"need logits [..., V] and int64 ids [...], got {shapes}")
    rows, flat = logits.reshape(-1, logits.shape[-1]), ids.reshape(-1)
    run = logp_op if runs_triton(rows, flat) else eager
    logp, lse, h = run(rows, flat, entropy)
    return TokenLogp(
        logp.reshape(ids.shape), lse.reshape(ids.shape), h.reshape(ids.shape) if entropy else None
    )


def dpo_loss(
    logp_w: Tensor,
    logp_l: Tensor,
    ref_w: Tensor,
    ref_l: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Tensor:
    """Return the preference loss of each pair (Rafailov et al. 2023, eq. 7, and its usual variants).

    With d = (logp_w - logp_l) - (ref_w - ref_l): `sigmoid` is -(1 - e) log sigmoid(beta d) - e log
    sigmoid(-beta d) with label smoothing e, `hinge` is max(0, 1 - beta d) (SLiC), `ipo` is (d - 1 / (2
    beta))^2 (Azar et al. 2024, eq. 17).

    Args:
        logp_w: Log-probabilities of the preferred answers under the model, [B].
        logp_l: Those of the other answers, [B].
        ref_w: Those of the preferred answers under the frozen reference, [B].
        ref_l: Those of the other answers under the reference, [B].
        beta: Strength of the pull to the reference, above 0.
        label_smoothing: Assumed share of flipped labels, in [0, 0.5); only for `sigmoid`.
        variant: "sigmoid", "hinge" or "ipo".

    Returns:
        Losses [B].

    Raises:
        InputError: When a number is out of range or the variant is unknown.
    """
    check_number("beta", beta, low=0, low_open=True)
    check_number("label_smoothing", label_smoothing, low=0, high=0.5, high_open=True)
    check_choice("variant", variant, DPO_VARIANTS)
    if label_smoothing and variant != "sigmoid":
        raise InputError(
            f"label_smoothing belongs to the variant sigmoid, got variant {variant!r}; set it to 0"
        )
    difference = (logp_w - logp_l) - (ref_w - ref_l)
    if variant == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if variant == "hinge":
        return F.relu(1 - beta * difference)
    likely, flipped = F.logsigmoid(beta * difference), F.logsigmoid(-beta * difference)
    return -(1 - label_smoothing) * likely - label_smoothing * flipped


def eager(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in plain torch: computed in float32, or in float64 for float64 logits.

    Args:
        logits: [R, V].
        ids: [R].
        with_entropy: Whether to compute the entropy; without it an empty tensor takes its place.

    Returns:
        logp [R], lse [R], entropy [R] or [0].
    """
    wide = logits.to(_wide(logits))
    lse = torch.logsumexp(wide, dim=-1)
    chosen = wide.gather(1, ids.clamp(min=0)[:, None])[:, 0] - lse
    logp = torch.where(ids >= 0, chosen, 0)
    if not with_entropy:
        return logp, lse, lse.new_empty(0)
    log_p = wide - lse[:, None]
    # The inner mask keeps the gradient of forbidden tokens (-inf) at zero.
    finite = log_p > -torch.inf
    return logp, lse, -(log_p.exp() * torch.where(finite, log_p, 0)).sum(dim=-1)


def eager_backward(
    logits: Tensor,
    ids: Tensor,
    lse: Tensor,
    entropy: Tensor,
    g_logp: Tensor,
    g_lse: Tensor,
    g_entropy: Tensor,
) -> Tensor:
    """Return the gradient of the logits: g_logp (onehot - p) + g_lse p - g_entropy p (log p + H).

    Args:
        logits: [R, V].
        ids: [R].
        lse: [R].
        entropy: [R], or [0] when it was not computed.
        g_logp: Gradient of logp, [R].
        g_lse: Gradient of lse, [R].
        g_entropy: Gradient of the entropy, [R] or [0].

    Returns:
        [R, V] in the dtype of the logits.
    """
    log_p = logits.to(_wide(logits)) - lse[:, None]
    kept = torch.where(ids >= 0, g_logp, 0)[:, None]
    slope = g_lse[:, None] - kept
    if entropy.numel():
        slope = slope - g_entropy[:, None] * (torch.where(log_p > -torch.inf, log_p, 0) + entropy[:, None])
    return (log_p.exp() * slope).scatter_add(1, ids.clamp(min=0)[:, None], kept).to(logits.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.library.custom_op("noiseworks::selective_logp", mutates_args=())
def logp_op(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`eager` as a custom op with its own backward, by the Triton kernel where it can run."""
    if runs_triton(logits, ids):
        return _launch(logits, ids, with_entropy)
    return eager(logits, ids, with_entropy)


@logp_op.register_fake
def _(logits, ids, with_entropy):
    wide = _wide(logits)
    empty = logits.new_empty
    rows = logits.shape[0]
    return empty(rows, dtype=wide), empty(rows, dtype=wide), empty(rows if with_entropy else 0, dtype=wide)


@torch.library.custom_op("noiseworks::selective_logp_backward", mutates_args=())
def logp_backward_op(
    logits: Tensor,
    ids: Tensor,
    lse: Tensor,
    entropy: Tensor,
    g_logp: Tensor,
    g_lse: Tensor,
    g_entropy: Tensor,
) -> Tensor:
    """`eager_backward` as a custom op, by the Triton kernel where it can run."""
    if runs_triton(logits, ids):
        return _launch_backward(logits, ids, lse, entropy, g_logp, g_lse, g_entropy)
    return eager_backward(logits, ids, lse, entropy, g_logp, g_lse, g_entropy)


@logp_backward_op.register_fake
def _(logits, ids, lse, entropy, g_logp, g_lse, g_entropy):
    return logits.new_empty(logits.shape)


def _setup(ctx, inputs, output):
    logits, ids, _ = inputs
    _, lse, entropy = output
    ctx.save_for_backward(logits, ids, lse, entropy)


def _backward(ctx, g_logp, g_lse, g_entropy):
    return logp_backward_op(*ctx.saved_tensors, g_logp, g_lse, g_entropy), None, None


logp_op.register_autograd(_backward, setup_context=_setup)


if HAS_TRITON:
    import triton
    import triton.language as tl
    from noiseworks.core.kernels.triton_math import log_accurate

    @triton.jit
    def _forward_kernel(
        logits, ids, logp, lse, entropy, row_stride, vocabulary,
        ENTROPY: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One row: running maximum m, sum s of e^(x - m) and moment t = sum of (x - m) e^(x - m)."""
        row = tl.program_id(0).to(tl.int64)
        # A finite start keeps m - m_new defined while a row has shown nothing but -inf.
        m = -1.0e30
        s = 0.0
        t = 0.0
        for step in range(STEPS):
            token = step * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(logits + row * row_stride + token, mask=token < vocabulary, other=-float("inf"))
            x = x.to(tl.float32)
            m_new = tl.maximum(m, tl.max(x, axis=0))
            scale = tl.exp(m - m_new)
            e = tl.exp(x - m_new)
            if ENTROPY:
                t = (t + (m - m_new) * s) * scale + tl.sum(tl.where(e > 0, x - m_new, 0.0) * e, axis=0)
            s = s * scale + tl.sum(e, axis=0)
            m = m_new
        total = tl.where(s > 0, m + log_accurate(s), tl.where(s == 0, -float("inf"), s))
        index = tl.load(ids + row)
        inside = (index >= 0) & (index < vocabulary)
        chosen = tl.load(logits + row * row_stride + index, mask=inside, other=float("nan")).to(tl.float32)
        tl.store(logp + row, tl.where(index < 0, 0.0, chosen - total))
        tl.store(lse + row, total)
        if ENTROPY:
            tl.store(entropy + row, total - m - t / s)

    @triton.jit
    def _backward_kernel(
        logits, ids, lse, entropy, g_logp, g_lse, g_entropy, grad,
        row_stride, vocabulary, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = token < vocabulary
        x = tl.load(logits + row * row_stride + token, mask=inside, other=-float("inf")).to(tl.float32)
        log_p = x - tl.load(lse + row)
        p = tl.exp(log_p)
        index = tl.load(ids + row)
        kept = tl.where(index >= 0, tl.load(g_logp + row), 0.0)
        slope = tl.load(g_lse + row) - kept
        if ENTROPY:
            slope = slope - tl.load(g_entropy + row) * (tl.where(p > 0, log_p, 0.0) + tl.load(entropy + row))
        value = p * slope + tl.where(token == index, kept, 0.0)
        tl.store(grad + row * vocabulary + token, value, mask=inside)


def _launch(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, vocabulary = logits.shape
    logp, lse = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    entropy = torch.empty(rows if with_entropy else 0, dtype=torch.float32, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):
            _forward_kernel[(rows,)](
                logits, ids, logp, lse, entropy, logits.stride(0), vocabulary,
                ENTROPY=with_entropy, STEPS=-(-vocabulary // BLOCK_V), BLOCK=BLOCK_V, num_warps=8,
            )  # fmt: skip
    return logp, lse, entropy


def _launch_backward(logits, ids, lse, entropy, g_logp, g_lse, g_entropy) -> Tensor:
    rows, vocabulary = logits.shape
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    # Gradients of sums and means arrive expanded; the kernel reads them with stride 1.
    g_logp, g_lse, g_entropy = g_logp.contiguous(), g_lse.contiguous(), g_entropy.contiguous()
    if grad.numel():
        with torch.cuda.device_of(logits):
            _backward_kernel[(rows, -(-vocabulary // BLOCK_V))](
                logits, ids, lse, entropy, g_logp, g_lse, g_entropy, grad, logits.stride(0), vocabulary,
                ENTROPY=entropy.numel() > 0, BLOCK=BLOCK_V, num_warps=8,
            )  # fmt: skip
    return grad


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(shape["rows"], shape["vocabulary"], generator=generator, device=device).to(dtype)
    ids = torch.randint(shape["vocabulary"], (shape["rows"],), generator=generator, device=device)
    return logits, ids, False


def _naive(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor]:
    """The usual code: a float32 log-softmax of the whole array, gathered."""
    return (torch.log_softmax(logits.float(), dim=-1).gather(1, ids[:, None])[:, 0],)


BENCHMARK = Benchmark(
    op="selective_logp",
    summary="log-probabilities of given tokens, forward and backward, without a softmax in memory",
    shape={"rows": 256, "vocabulary": 8192},
    inputs=_inputs,
    eager=eager,
    kernel=logp_op,
    naive=_naive,
    bytes_moved=lambda shape, itemsize, backward: (3 if backward else 1)
    * shape["rows"] * shape["vocabulary"] * itemsize,
    flops=lambda shape, backward: (9 if backward else 4) * shape["rows"] * shape["vocabulary"],
    gradients=(0,),
)  # fmt: skip
