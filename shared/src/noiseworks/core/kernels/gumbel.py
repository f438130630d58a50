"""`gumbel_argmax_conf`: draw a token per row and say how sure the model is, in one pass over the logits.

Masked-diffusion decoding needs, per position, one draw from softmax(logits / T) and the confidence scores
that decide which positions are kept. Written with plain operations that is a dozen passes over [rows,
vocabulary]; the kernel reads the logits once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from noiseworks.core import noise
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import HAS_TRITON, runs_triton
from torch import Tensor

# Tokens per program. Fixed, so that a row's sums are added in one order whatever the batch.
BLOCK_V = 4096


class GumbelDraw(NamedTuple):
    """One draw per row, and the model's confidence at temperature 1 over the allowed tokens.

    Attributes:
        ids: Drawn token ids, int64 [R]; -1 where a row holds NaN, +inf or no allowed token.
        p_ids: Probability of the drawn token, float32 [R].
        p_max: Largest probability, float32 [R].
        margin: Largest minus second largest probability, float32 [R].
        entropy: Entropy in nats, float32 [R].
    """

    ids: Tensor
    p_ids: Tensor
    p_max: Tensor
    margin: Tensor
    entropy: Tensor


def gumbel_argmax_conf(
    logits: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    counter0: int = 0,
    mask_id: int | None = None,
    top_p: float | None = None,
    check: bool = True,
) -> GumbelDraw:
    """Draw one token per row from softmax(logits / temperature), with its confidence scores.

    The word of token v in row r is counter `counter0 + v // 4`, lane `v % 4` of key r, so the draw does
    not depend on the batch or on the kernel's tiling. Not differentiable.

    Args:
        logits: [R, V], any floating dtype (float64 only without the kernel); -inf forbids a token.
        keys: One key per row (`noise.SeedSpec.keys`), int64 [R].
        temperature: A number or [R], at least 0; 0 means the plain arg max, ties to the lowest index.
        counter0: First counter, in [0, 2^62); uses ceil(V / 4) counters.
        mask_id: A token that is never drawn and has probability 0 (the mask token).
        top_p: In (0, 1]: draw only from the smallest set of most likely tokens whose probability at
            `temperature` reaches it (tokens that tie with the last one included). Needs a sort, so it
            costs a copy of the logits.
        check: Whether to refuse bad rows, which waits for the device. Without it they get id -1 and NaN
            scores.

    Returns:
        The draw. Scores are those of the full distribution at temperature 1 whatever `temperature` and
        `top_p` are.

    Raises:
        InputError: When shapes do not fit, a number is out of range or (with `check`) a row holds NaN,
            +inf or no allowed token.
    """
    if logits.ndim != 2 or keys.shape != logits.shape[:1] or logits.shape[1] == 0:
        shapes = f"{tuple(logits.shape)} and {tuple(keys.shape)}"
        raise InputError(f"need logits [R, V] with V > 0 and keys [R], got {shapes}")
    if mask_id is not None and not 0 <= mask_id < logits.shape[1]:
        raise InputError(f"mask_id must be a token of the vocabulary of {logits.shape[1]}, got {mask_id}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must lie in (0, 1], got {top_p}")
    if not isinstance(temperature, Tensor) and temperature < 0:
        raise InputError(f"temperature must be at least 0, got {temperature}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    t = torch.as_tensor(temperature, dtype=wide, device=logits.device).expand(len(logits)).contiguous()
    forbidden = -1 if mask_id is None else mask_id
    floors = None if top_p is None else nucleus_floor(logits.to(wide), t, forbidden, top_p)
    arguments = (logits, keys, t, floors, counter0, forbidden)
    run = gumbel_op if runs_triton(logits, keys, t, floors) else eager
    draw = GumbelDraw(*run(*arguments))
    if check and bool((draw.ids < 0).any()):
        row = int((draw.ids < 0).nonzero()[0])
        raise InputError(f"row {row} of the logits holds NaN, +inf or no allowed token; mend the model")
    return draw


def nucleus_floor(logits: Tensor, temperature: Tensor, mask_id: int, top_p: float) -> Tensor:
    """Return, per row, the smallest logit of the nucleus of softmax(logits / T); -inf rows where T is 0.

    Args:
        logits: [R, V], float32 or float64.
        temperature: [R].
        mask_id: Forbidden token, or -1.
        top_p: Mass that the nucleus reaches.
    """
    ranked = _forbid(logits, mask_id).sort(dim=-1, descending=True).values
    p = torch.softmax(ranked / torch.where(temperature > 0, temperature, 1)[:, None], dim=-1)
    inside = (p.cumsum(dim=-1) - p) < top_p
    floor = ranked.masked_fill(~inside, torch.inf).amin(dim=-1)
    return torch.where(temperature > 0, floor, -torch.inf)


def _forbid(logits: Tensor, mask_id: int) -> Tensor:
    if mask_id < 0:
        return logits
    return logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) == mask_id, -torch.inf)


def eager(
    logits: Tensor, keys: Tensor, temperature: Tensor, floors: Tensor | None, counter0: int, mask_id: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The definition, in plain torch: computed in float32, or in float64 for float64 logits.

    Args:
        logits: [R, V].
        keys: [R].
        temperature: [R].
        floors: Smallest logit that may be drawn, [R], or None.
        counter0: First counter.
        mask_id: Forbidden token, or -1.

    Returns:
        The fields of `GumbelDraw`.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    allowed = _forbid(logits.to(wide), mask_id)
    race = noise.exponential(keys, allowed.shape[1:], counter0=counter0, dtype=wide)
    scores = noise.race_scores(allowed, temperature, race)
    if floors is not None:
        scores = scores.masked_fill(allowed < floors[:, None], -torch.inf)
    ids = scores.argmax(dim=-1)
    log_p = torch.log_softmax(allowed, dim=-1)
    p = log_p.exp()
    top = p.topk(min(2, p.shape[1]), dim=-1).values
    margin = top[:, 0] - top[:, 1] if p.shape[1] > 1 else top[:, 0]
    entropy = -torch.where(p > 0, p * log_p, 0).sum(dim=-1)
    bad = (allowed.isnan() | (allowed == torch.inf)).any(dim=-1) | (allowed == -torch.inf).all(dim=-1)
    values = (p.gather(1, ids[:, None])[:, 0], top[:, 0].clone(), margin, entropy)
    return ids.masked_fill(bad, -1), *(value.masked_fill(bad, torch.nan) for value in values)


@torch.library.custom_op("noiseworks::gumbel_argmax_conf", mutates_args=())
def gumbel_op(
    logits: Tensor, keys: Tensor, temperature: Tensor, floors: Tensor | None, counter0: int, mask_id: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`eager` as a custom op, by the Triton kernel where it can run."""
    if runs_triton(logits, keys, temperature, floors):
        return _launch(logits, keys, temperature, floors, counter0, mask_id)
    return eager(logits, keys, temperature, floors, counter0, mask_id)


@gumbel_op.register_fake
def _(logits, keys, temperature, floors, counter0, mask_id):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = [logits.new_empty(logits.shape[:1], dtype=wide) for _ in range(4)]
    return logits.new_empty(logits.shape[:1], dtype=torch.int64), *scores


if HAS_TRITON:
    import triton
    import triton.language as tl
    from noiseworks.core.kernels.triton_math import exponential_of, log_accurate, random_words

    @triton.jit(do_not_specialize=["counter0", "mask_id"])
    def _chunk_kernel(
        logits, keys, temperature, floors, partials, winners,
        row_stride, vocabulary, counter0, mask_id,
        HAS_FLOOR: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Reduce BLOCK tokens of one row to six numbers and the race's winner."""
        row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
        token = chunk * BLOCK + tl.arange(0, BLOCK)
        allowed = (token < vocabulary) & (token != mask_id)
        x = tl.load(logits + row * row_stride + token, mask=allowed, other=-float("inf")).to(tl.float32)
        bad = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), axis=0)
        first = tl.max(x, axis=0)
        second = tl.max(tl.where(tl.arange(0, BLOCK) == tl.argmax(x, axis=0), -float("inf"), x), axis=0)
        shifted = x - tl.where(first == -float("inf"), 0.0, first)
        e = tl.exp(shifted)
        mass = tl.sum(e, axis=0)
        moment = tl.sum(tl.where(e > 0, shifted, 0.0) * e, axis=0)
        t = tl.load(temperature + row)
        words = random_words(tl.load(keys + row), counter0, chunk * (BLOCK // 4), BLOCK // 4)
        noise_term = log_accurate(exponential_of(words))
        score = tl.where(t > 0, x * tl.div_rn(1.0, tl.where(t > 0, t, 1.0)) - noise_term, x)
        if HAS_FLOOR:
            score = tl.where(x < tl.load(floors + row), -float("inf"), score)
        winner = tl.argmax(score, axis=0)
        chosen = tl.max(tl.where(tl.arange(0, BLOCK) == winner, x, -float("inf")), axis=0)
        base = row * tl.num_programs(1) + chunk
        tl.store(partials + base * 6 + 0, first)
        tl.store(partials + base * 6 + 1, second)
        tl.store(partials + base * 6 + 2, mass)
        tl.store(partials + base * 6 + 3, moment)
        tl.store(partials + base * 6 + 4, tl.max(score, axis=0))
        tl.store(partials + base * 6 + 5, chosen)
        tl.store(winners + base, tl.where(bad > 0, -1, chunk.to(tl.int64) * BLOCK + winner))

    @triton.jit
    def _combine_kernel(partials, winners, ids, p_ids, p_max, margin, entropy, chunks, BLOCK: tl.constexpr):
        """Combine one row's chunks."""
        row = tl.program_id(0).to(tl.int64)
        lane = tl.arange(0, BLOCK)
        inside = lane < chunks
        at = partials + (row * chunks + lane) * 6
        first = tl.load(at, mask=inside, other=-float("inf"))
        second = tl.load(at + 1, mask=inside, other=-float("inf"))
        mass = tl.load(at + 2, mask=inside, other=0.0)
        moment = tl.load(at + 3, mask=inside, other=0.0)
        score = tl.load(at + 4, mask=inside, other=-float("inf"))
        chosen = tl.load(at + 5, mask=inside, other=-float("inf"))
        winner = tl.load(winners + row * chunks + lane, mask=inside, other=0)
        top = tl.max(first, axis=0)
        others = tl.where(lane == tl.argmax(first, axis=0), -float("inf"), first)
        runner_up = tl.maximum(tl.max(others, axis=0), tl.max(second, axis=0))
        shift = tl.where(first == -float("inf"), 0.0, first - top)
        scale = tl.where(first == -float("inf"), 0.0, tl.exp(shift))
        total = tl.sum(mass * scale, axis=0)
        mean = tl.sum((moment + shift * mass) * scale, axis=0) / total
        best = lane == tl.argmax(score, axis=0)
        bad = (tl.min(winner, axis=0) < 0) | (top == -float("inf"))
        nan = float("nan")
        tl.store(ids + row, tl.where(bad, -1, tl.max(tl.where(best, winner, -1), axis=0)))
        logit = tl.max(tl.where(best, chosen, -float("inf")), axis=0)
        tl.store(p_ids + row, tl.where(bad, nan, tl.exp(logit - top) / total))
        tl.store(p_max + row, tl.where(bad, nan, 1.0 / total))
        tl.store(margin + row, tl.where(bad, nan, (1.0 - tl.exp(runner_up - top)) / total))
        tl.store(entropy + row, tl.where(bad, nan, log_accurate(total) - mean))


def _launch(logits, keys, temperature, floors, counter0, mask_id):
    rows, vocabulary = logits.shape
    chunks = -(-vocabulary // BLOCK_V)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    scores = [torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(4)]
    if rows == 0:
        return ids, *scores
    partials = torch.empty((rows, chunks, 6), dtype=torch.float32, device=logits.device)
    winners = torch.empty((rows, chunks), dtype=torch.int64, device=logits.device)
    with torch.cuda.device_of(logits):
        _chunk_kernel[(rows, chunks)](
            logits, keys, temperature, floors, partials, winners,
            logits.stride(0), vocabulary, counter0, mask_id,
            HAS_FLOOR=floors is not None, BLOCK=BLOCK_V, num_warps=8,
        )  # fmt: skip
        block = max(16, 1 << (chunks - 1).bit_length())
        _combine_kernel[(rows,)](partials, winners, ids, *scores, chunks, BLOCK=block, num_warps=1)
    return ids, *scores


def _inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(shape["rows"], shape["vocabulary"], generator=generator, device=device).to(dtype)
    keys = noise.SeedSpec(0).keys(range(shape["rows"]), device)
    return logits, keys, torch.ones(shape["rows"], device=device), None, 0, -1


def _naive(logits: Tensor, keys: Tensor, temperature: Tensor, floors: None, counter0: int, mask_id: int):
    """The usual code: a float64 Gumbel arg max over the whole array, then a float64 softmax."""
    wide = logits.double()
    u = torch.rand_like(wide)
    ids = (wide.exp() / (-torch.log(u)) ** temperature[:, None]).argmax(dim=-1)
    p = torch.softmax(wide, dim=-1)
    top = p.topk(2, dim=-1).values
    entropy = -(p * torch.log(p + 1e-10)).sum(dim=-1)
    return ids, p.gather(1, ids[:, None])[:, 0], top[:, 0], top[:, 0] - top[:, 1], entropy


BENCHMARK = Benchmark(
    op="gumbel_argmax_conf",
    summary="draw tokens and their confidence scores in one pass over the logits",
    shape={"rows": 64, "vocabulary": 8192},
    inputs=_inputs,
    eager=eager,
    kernel=gumbel_op,
    naive=_naive,
    bytes_moved=lambda shape, itemsize, backward: (
        shape["rows"] * (shape["vocabulary"] * itemsize + 8 + 4 + 24)
    ),
    # Per token: about 45 integer operations of Philox, 40 of the two logarithms, 15 of the reductions.
    flops=lambda shape, backward: 100 * shape["rows"] * shape["vocabulary"],
)
