"""`block_gather_attention`: a few queries against keys and values that lie in blocks all over a cache.

Block-wise decoding of many sequences keeps keys in blocks of one pool, with a table of blocks for each sequence.
Plain attention has to gather them into a copy first; the kernel reads each block where it stands, once for up to 64
queries of all heads that share its keys.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import HAS_TRITON, INTERPRET, runs_triton
from torch import Tensor

# Keys per program. Fixed, so that a row's sums are added in one order whatever the batch.
SPLIT_KEYS = 512
# Rows of queries per program, at most.
BLOCK_ROWS = 64


class PartialAttention(NamedTuple):
    """Attention over some of the keys, and what it takes to put it together with that over others.

    Attributes:
        output: Mean of the values under the softmax, [..., D]; 0 where no key is seen.
        lse: Logarithm of the summed exponentials of the scores, [...]; -inf where no key is seen.
    """

    output: Tensor
    lse: Tensor


def block_gather_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scale: float | None = None,
) -> PartialAttention:
    """Return softmax(scale q kᵀ) v over the keys that each sequence's table names. Not differentiable.

    Key n of sequence b stands at `k_cache[block_table[b, n // bs], n % bs]`, for n below `lengths[b]`.

    Args:
        q: Queries [B, H, Q, D].
        k_cache: All keys, [blocks, bs, Hk, D] with Hk a divisor of H (query heads share keys in groups of H / Hk).
            The kernel takes bs that is a power of two and at least 16.
        v_cache: All values, of the same shape and dtype.
        block_table: Which block holds the keys n bs to (n + 1) bs - 1, int64 [B, M]; entries beyond the length are
            never read.
        lengths: Keys of each sequence, int64 [B], 0 to M bs.
        scale: Factor of the scores, above 0; 1 / sqrt(D) by default.

    Returns:
        The output [B, H, Q, D] in the dtype of q, and `lse` [B, H, Q] in float32 (float64 for float64 inputs). A
        sequence whose length or table does not fit the cache gets NaN, as that is known on the device alone.

    Raises:
        InputError: When shapes or dtypes do not fit, or the scale is out of range.
    """
    shapes = f"{tuple(q.shape)}, {tuple(k_cache.shape)}, {tuple(block_table.shape)}, {tuple(lengths.shape)}"
    fits = q.ndim == k_cache.ndim == 4 and k_cache.shape == v_cache.shape and block_table.ndim == 2
    fits = fits and q.shape[3] == k_cache.shape[3] and q.shape[1] % max(k_cache.shape[2], 1) == 0
    if not fits or lengths.shape != q.shape[:1] or block_table.shape[0] != q.shape[0] or 0 in k_cache.shape:
        raise InputError(
            "need q [B, H, Q, D], k_cache and v_cache [blocks, bs, Hk, D] with Hk a divisor of H, block_table [B, M] "
            f"and lengths [B], got {shapes}"
        )
    if not q.dtype == k_cache.dtype == v_cache.dtype or {block_table.dtype, lengths.dtype} != {torch.int64}:
        kinds = ", ".join(str(tensor.dtype) for tensor in (q, k_cache, v_cache, block_table, lengths))
        raise InputError(
            f"need one dtype for q and both caches, int64 for block_table and lengths, got {kinds}"
        )
    scale = q.shape[3] ** -0.5 if scale is None else scale
    check_number("scale", scale, low=0, low_open=True)
    run = attention_op if _takes(q, k_cache, v_cache, block_table, lengths) else eager
    return PartialAttention(*run(q, k_cache, v_cache, block_table, lengths, scale))


def _takes(q: Tensor, k_cache: Tensor, *others: Tensor) -> bool:
    """Return whether a call takes the kernel, whose products are of whole blocks."""
    size = k_cache.shape[1]
    return size >= 16 and size & (size - 1) == 0 and runs_triton(q, k_cache, *others)


def merge_attention(outputs: Tensor, lse: Tensor) -> PartialAttention:
    """Put partial attentions of the same queries over disjoint keys together.

    sum_i w_i o_i with w = softmax(lse): what one softmax over all keys gives.

    Args:
        outputs: [P, ..., D].
        lse: [P, ...]; -inf for a part that saw no key.
    """
    whole = lse.logsumexp(dim=0)
    weights = (lse - torch.where(whole == -torch.inf, 0, whole)).exp()
    output = (weights.unsqueeze(-1) * outputs.to(lse.dtype)).sum(dim=0)
    return PartialAttention(output.to(outputs.dtype), whole)


def eager(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition, in plain torch: gathered, then computed in float32, or in float64 for float64 inputs.

    Args:
        q: [B, H, Q, D].
        k_cache: [blocks, bs, Hk, D].
        v_cache: [blocks, bs, Hk, D].
        block_table: [B, M].
        lengths: [B].
        scale: Factor of the scores.

    Returns:
        The fields of `PartialAttention`.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    blocks, size, key_heads, _ = k_cache.shape
    first = torch.arange(block_table.shape[1], device=q.device) * size
    outside = (block_table < 0) | (block_table >= blocks)
    bad = (outside & (first < lengths[:, None])).any(dim=1)
    bad = bad | (lengths < 0) | (lengths > block_table.shape[1] * size)
    table = block_table.clamp(0, blocks - 1)
    seen = torch.arange(block_table.shape[1] * size, device=q.device) < lengths[:, None]
    seen = seen[:, None, None, None]
    # [B, Hk, 1, N, D]; what is not seen may hold anything, NaN included.
    k, v = (cache[table].flatten(1, 2).transpose(1, 2).unsqueeze(2).to(wide) for cache in (k_cache, v_cache))
    v = v.masked_fill(~seen.transpose(-1, -2), 0)
    groups = q.to(wide).unflatten(1, (key_heads, -1))
    scores = (scale * groups @ k.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    p = (scores - torch.where(lse == -torch.inf, 0, lse)[..., None]).exp()
    output = (p @ v).flatten(1, 2).masked_fill(bad[:, None, None, None], torch.nan)
    return output.to(q.dtype), lse.flatten(1, 2).masked_fill(bad[:, None, None], torch.nan)


@torch.library.custom_op("noiseworks::block_gather_attention", mutates_args=())
def attention_op(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`eager` as a custom op, by the Triton kernel where it can run."""
    if _takes(q, k_cache, v_cache, block_table, lengths):
        return _launch(q, k_cache, v_cache, block_table, lengths, scale)
    return eager(q, k_cache, v_cache, block_table, lengths, scale)


@attention_op.register_fake
def _(q, k_cache, v_cache, block_table, lengths, scale):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=wide)


if HAS_TRITON:
    import triton
    import triton.language as tl
    from noiseworks.core.kernels.triton_math import log_accurate

    @triton.jit
    def _split_kernel(
        q, k_cache, v_cache, block_table, lengths, partials, lse,
        k_block, k_token, k_head, v_block, v_token, v_head,
        rows, key_heads, width, blocks, entries, factor,
        STEPS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr,
    ):  # fmt: skip
        """Attention of ROWS queries that share keys over STEPS blocks, with a running softmax."""
        pair, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
        sample, head = pair // key_heads, pair % key_heads
        row, column, token = (
            tl.program_id(1) * ROWS + tl.arange(0, ROWS),
            tl.arange(0, WIDTH),
            tl.arange(0, SIZE),
        )
        within = (row[:, None] < rows) & (column[None, :] < width)
        queries = tl.load(q + (pair * rows + row[:, None]) * width + column[None, :], mask=within, other=0.0)
        if WIDEN:
            queries = queries.to(tl.float32)
        length = tl.load(lengths + sample)
        bad = ((length < 0) | (length > entries * SIZE)).to(tl.int32)
        length = tl.minimum(length, entries * SIZE)
        top = tl.full([ROWS], -float("inf"), tl.float32)
        mass = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, WIDTH], tl.float32)
        for step in range(STEPS):
            entry = split * STEPS + step
            if entry * SIZE < length:
                block = tl.load(block_table + sample * entries + entry)
                good = (block >= 0) & (block < blocks)
                bad += tl.where(good, 0, 1)
                block = tl.where(good, block, 0)
                seen = entry * SIZE + token < length
                wanted = seen[:, None] & (column[None, :] < width)
                k_at = block * k_block + head * k_head + token[:, None] * k_token + column[None, :]
                v_at = block * v_block + head * v_head + token[:, None] * v_token + column[None, :]
                k = tl.load(k_cache + k_at, mask=wanted, other=0.0)
                v = tl.load(v_cache + v_at, mask=wanted, other=0.0)
                if WIDEN:
                    k, v = k.to(tl.float32), v.to(tl.float32)
                scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * factor
                scores = tl.where(seen[None, :], scores, -float("inf"))
                highest = tl.maximum(top, tl.max(scores, axis=1))
                p, kept = tl.exp(scores - highest[:, None]), tl.exp(top - highest)
                mass = mass * kept + tl.sum(p, axis=1)
                mixed = mixed * kept[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
                top = highest
        some = mass > 0
        mixed = mixed / tl.where(some, mass, 1.0)[:, None]
        found = tl.where(some, top + log_accurate(tl.where(some, mass, 1.0)), -float("inf"))
        at = (split * tl.num_programs(0) + pair) * rows + row
        nan = float("nan")
        tl.store(lse + at, tl.where(bad > 0, nan, found), mask=row < rows)
        at = at[:, None] * width + column[None, :]
        tl.store(partials + at, tl.where(bad > 0, nan, mixed), mask=within)

    @triton.jit
    def _merge_kernel(
        partials, lse, output, merged, rows, width, splits, SPLITS: tl.constexpr, WIDTH: tl.constexpr
    ):
        """`merge_attention` of one row."""
        row = tl.program_id(0).to(tl.int64)
        part, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
        found = tl.load(lse + part * rows + row, mask=part < splits, other=-float("inf"))
        # A maximum passes NaN by; a sum keeps it.
        top = tl.max(found, axis=0)
        weights = tl.exp(found - tl.where(top == -float("inf"), 0.0, top))
        total = tl.sum(weights, axis=0)
        at = (part[:, None] * rows + row) * width + column[None, :]
        wanted = (part[:, None] < splits) & (column[None, :] < width)
        mixed = tl.sum(weights[:, None] * tl.load(partials + at, mask=wanted, other=0.0), axis=0)
        some = total > 0
        bad = total != total
        value = mixed / tl.where(some, total, 1.0)
        nan = float("nan")
        tl.store(output + row * width + column, tl.where(bad, nan, value), mask=column < width)
        whole = tl.where(some, top + log_accurate(tl.where(some, total, 1.0)), -float("inf"))
        tl.store(merged + row, tl.where(bad, nan, whole))


def _launch(q, k_cache, v_cache, block_table, lengths, scale):
    (samples, heads, queries, width), (blocks, size, key_heads, _) = q.shape, k_cache.shape
    rows, entries = heads // key_heads * queries, block_table.shape[1]
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    merged = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if output.numel() == 0:
        return output, merged
    steps = max(1, SPLIT_KEYS // size)
    splits = max(1, -(-entries // steps))
    partials = torch.empty((splits, *q.shape), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, *q.shape[:3]), dtype=torch.float32, device=q.device)
    tile = min(BLOCK_ROWS, max(16, 1 << (rows - 1).bit_length()))
    wide = max(16, 1 << (width - 1).bit_length())
    with torch.cuda.device_of(q):
        _split_kernel[(samples * key_heads, -(-rows // tile), splits)](
            q.contiguous(), k_cache, v_cache, block_table.contiguous(), lengths, partials, lse,
            *k_cache.stride()[:3], *v_cache.stride()[:3],
            rows, key_heads, width, blocks, entries, scale,
            STEPS=steps, ROWS=tile, SIZE=size, WIDTH=wide, WIDEN=INTERPRET, num_warps=4,
        )  # fmt: skip
        _merge_kernel[(samples * heads * queries,)](
            partials, lse, output, merged, samples * heads * queries, width, splits,
            SPLITS=1 << (splits - 1).bit_length(), WIDTH=wide, num_warps=1,
        )  # fmt: skip
    return output, merged


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    names = ("samples", "heads", "key_heads", "queries", "width", "size", "entries")
    samples, heads, key_heads, queries, width, size, entries = (shape[name] for name in names)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device).to(dtype)

    cache = (samples * entries, size, key_heads, width)
    table = torch.randperm(samples * entries, generator=generator, device=device).reshape(samples, entries)
    lengths = torch.full((samples,), entries * size - 3, device=device)
    return draw(samples, heads, queries, width), draw(*cache), draw(*cache), table, lengths, width**-0.5


def _naive(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """The usual code: gather the blocks into a copy, then torch's attention with a mask."""
    k, v = (cache[table].flatten(1, 2).transpose(1, 2) for cache in (k_cache, v_cache))
    mask = (torch.arange(k.shape[2], device=q.device) < lengths[:, None])[:, None, None, :]
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _keys(shape: Mapping[str, int]) -> int:
    return shape["samples"] * shape["entries"] * shape["size"]


BENCHMARK = Benchmark(
    op="block_gather_attention",
    summary="queries of a block against keys in blocks of a shared cache, without gathering them",
    shape={"samples": 2, "heads": 8, "key_heads": 4, "queries": 32, "width": 64, "size": 32, "entries": 32},
    inputs=_inputs,
    eager=eager,
    kernel=attention_op,
    naive=_naive,
    bytes_moved=lambda shape, itemsize, backward: itemsize * shape["width"] * 2 * (
        _keys(shape) * shape["key_heads"] + shape["samples"] * shape["heads"] * shape["queries"]
    ),
    flops=lambda shape, backward: 4 * _keys(shape) * shape["heads"] * shape["queries"] * shape["width"],
)  # fmt: skip
