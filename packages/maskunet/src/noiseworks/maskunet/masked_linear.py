"""A linear layer with a mask on its weights for each batch row: the plain form, and one without masks in memory.

Logits of a row are low-rank, L = A P' + c with A [out, k] and P [in, k] (eq. 4), or given as they are. The plain form
makes logits, noise, masks and masked weights of all rows, [rows, out, in] each. The fused one goes through them in
tiles that fit a core's cache: logits, one comparison, masked weights, product. With V = exp(-E) uniform on (0, 1] a
weight is kept iff V > exp(-exp(L - cut)), so no Gumbel noise is drawn, which costs six times as much on a CPU; and
where few weights can be off, only those whose V is small are drawn, get logits and are compared at all. Nothing of a
tile outlives it; the way back computes it again from the noise's seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from noiseworks.core.noise import mix64
from noiseworks.maskunet.gumbel import cut, gumbel_sigmoid
from torch import Tensor

TILE = 1 << 17  # weights that are looked at together: 512 KiB in float32
# V at most this is drawn by itself: where no weight with a larger V can be off, nothing else is drawn.
RARE = 2.0**-6
# Above this value of L - cut exp(-exp(.)) is below the smallest V in float32, 2^-24 RARE: such a weight is never off.
_SURE = 3.04


@dataclass(frozen=True)
class Logits:
    """Logits of the weights of one layer, one set a batch row or one for all rows.

    Attributes:
        a: A [1 or B, out, k], or the logits themselves [B, out, in] where `p` is None.
        p: P [1 or B, in, k], or None.
        c: Added to all rows of the weight [in], or a scalar.
    """

    a: Tensor
    p: Tensor | None = None
    c: Tensor | float = 0.0

    @property
    def rows(self) -> int:
        """Number of sets."""
        return len(self.a) if self.p is None else max(len(self.a), len(self.p))

    def whole(self) -> Tensor:
        """Return the logits [B, out, in] in float32."""
        found = self.a if self.p is None else self.a @ self.p.transpose(1, 2)
        return found.float() + self.c


@dataclass(frozen=True)
class Draw:
    """How bits are made of logits.

    Attributes:
        tau: Temperature of the gradient.
        threshold: delta.
        seed: Of the noise, or None for none.
        first_row: Number of the first row's stream, or all numbers.
        hard: Whether masks are bits or the soft values themselves.
    """

    tau: float = 1.0
    threshold: float = 0.5
    seed: int | None = None
    first_row: int | Sequence[int] = 0
    hard: bool = True

    @property
    def cut(self) -> float:
        """Where l + g is compared."""
        return cut(self.tau, self.threshold)

    def rare(self, tile: "Tile", size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a tile's V is at most `RARE`, without drawing the rest: rows, places in a row, and V, [n] each.

        Args:
            tile: The tile.
            size: Weights of a row of it.
            device: Where they are drawn.
        """
        found = [
            self._rare_row(tile, row, size, device)[1:] for row in range(tile.rows.start, tile.rows.stop)
        ]
        rows = [torch.full_like(places, number) for number, (places, _) in enumerate(found)]
        return torch.cat(rows), *(torch.cat(parts) for parts in zip(*found, strict=True))

    def fill(self, out: Tensor, tile: "Tile") -> Tensor:
        """Fill a tile's [b, outs, in] with V, uniform on (0, 1], each row from a generator of its own."""
        for number, row in enumerate(out, tile.rows.start):
            generator, places, values = self._rare_row(tile, number, row.numel(), out.device)
            row.uniform_(generator=generator).neg_().add_(1).mul_(1 - RARE).add_(RARE)
            row.view(-1)[places] = values
        return out

    def _rare_row(self, tile: "Tile", row: int, size: int, device: torch.device) -> tuple:
        """Return a row's generator, and from it the places whose V is at most `RARE`, ascending, and their V.

        Each weight is one of them with that probability by itself, so the gaps between them are geometric.
        """
        stream = self.first_row + row if isinstance(self.first_row, int) else self.first_row[row]
        # Mixed, because the generator reads the low 32 bits of a seed alone.
        seed = mix64(self.seed, stream, tile.outs.start) >> 1
        generator = torch.Generator(device).manual_seed(seed)
        count, last, parts = int(size * RARE + 6 * (size * RARE) ** 0.5) + 8, -1, []
        while last < size:  # nearly always once
            gaps = torch.empty(count, device=device).exponential_(generator=generator)
            parts.append(last + (gaps / -math.log1p(-RARE)).long().add_(1).cumsum(0))
            last = int(parts[-1][-1])
        places = torch.cat(parts)
        places = places[places < size]
        values = torch.empty(len(places), device=device).uniform_(generator=generator)
        return generator, places, values.neg_().add_(1).mul_(RARE)

    def noise(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """Return the noise E = -ln V of all rows, [B, out, in], as the tiles draw V; None without a seed."""
        if self.seed is None:
            return None
        found = torch.empty(tuple(shape), device=device)
        for tile in tiles(shape):
            self.fill(found[tile.index], tile)
        return found.log_().neg_()


@dataclass(frozen=True)
class Tile:
    """A part of the weights of all rows: some rows as a whole, or some output channels of one."""

    rows: slice
    outs: slice

    @property
    def index(self) -> tuple[slice, slice]:
        """Index of the part."""
        return self.rows, self.outs

    def shape(self, weight: Tensor) -> tuple[int, int, int]:
        """Return the part's shape, given its output channels of the weight."""
        return self.rows.stop - self.rows.start, *weight.shape


def tiles(shape: Sequence[int]) -> Iterator[Tile]:
    """Yield the tiles of [B, out, in] in their order.

    At most a quarter of the rows are in one. The channels of a tile depend on the layer alone, so that the noise of a
    row is the same in every batch.
    """
    count, outs, ins = shape
    if outs * ins <= TILE:
        size = max(1, min(TILE // (outs * ins), -(-count // 4)))
        yield from (
            Tile(slice(first, min(first + size, count)), slice(0, outs)) for first in range(0, count, size)
        )
        return
    size = max(1, TILE // ins)
    for row in range(count):
        yield from (
            Tile(slice(row, row + 1), slice(first, min(first + size, outs))) for first in range(0, outs, size)
        )


def naive_masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, logits: Logits, draw: Draw, noise: Tensor | None = None
) -> Tensor:
    """Return x W_b' + bias with W_b = W * mask_b for each batch row (eq. 5), by way of all masks; the definition.

    Args:
        x: Inputs [B, ..., in].
        weight: W [out, in].
        bias: [out], never masked, or None.
        logits: Of each row, or of all.
        draw: How masks are made of them.
        noise: E [B, out, in], by default that of `draw`.
    """
    found = logits.whole()
    mask = gumbel_sigmoid(
        found,
        draw.noise(found.shape, found.device) if noise is None else noise,
        tau=draw.tau,
        threshold=draw.threshold,
        hard=draw.hard,
    )
    masked = weight * mask.to(weight)
    out = _flat(x, len(masked)) @ masked.transpose(1, 2)
    out = out if bias is None else out + bias
    return out.reshape(*x.shape[:-1], len(weight))


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Logits, draw: Draw) -> Tensor:
    """Return what `naive_masked_linear` does without making masks of all rows; where no weight is off, the plain layer.

    Differentiable in x, weight, bias and logits. The result of a layer none of whose weights is off is bit for bit that
    of `F.linear`.
    """
    c = logits.c if isinstance(logits.c, Tensor) else x.new_tensor(logits.c, dtype=torch.float32)
    flat, a = _flat(x, logits.rows), logits.a.expand(logits.rows, -1, -1)
    needs = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (flat, weight, a, logits.p, c)
    )
    if not needs:
        with torch.no_grad():
            out, whole = _forward(flat, weight, a, logits.p, c, draw)
            if whole:
                return F.linear(x, weight, bias)
            out = out if bias is None else out.add_(bias)
            return out.reshape(*x.shape[:-1], len(weight))
    out = _Fused.apply(flat, weight, a, logits.p, c, draw)
    out = out if bias is None else out + bias
    return out.reshape(*x.shape[:-1], len(weight))


def _flat(x: Tensor, rows: int) -> Tensor:
    """Return inputs as [rows, n, in]: rows of the batch, or all of it behind one mask."""
    return x.reshape(rows, -1, x.shape[-1])


def _logits(a: Tensor, p: Tensor | None, c: Tensor, tile: Tile) -> Tensor:
    part = a[tile.index]
    if p is None:
        return part.float() + c
    own = p[tile.rows] if len(p) > 1 else p.expand(len(part), -1, -1)
    base = c if c.ndim else c.expand(p.shape[1])
    return torch.baddbmm(base.to(part), part, own.transpose(1, 2)).float()


def _bits(found: Tensor, noise: Tensor | None, draw: Draw) -> Tensor:
    """Return l + g > cut in place of the logits, as numbers."""
    if noise is None:
        return torch.gt(found, draw.cut, out=found)
    return torch.gt(noise, found.sub_(draw.cut).exp_().neg_().exp_(), out=found)


def _noise(found: Tensor, tile: Tile, draw: Draw) -> Tensor | None:
    return None if draw.seed is None else draw.fill(torch.empty_like(found), tile)


def _soft(found: Tensor, noise: Tensor | None, draw: Draw) -> Tensor:
    moved = found if noise is None else found - noise.log().neg_().log_()
    return torch.sigmoid(moved / draw.tau)


def _forward(
    flat: Tensor, weight: Tensor, a: Tensor, p: Tensor | None, c: Tensor, draw: Draw
) -> tuple[Tensor, bool]:
    """Return the products [rows, n, out], and whether no weight of any row was off."""
    whole, floor = draw.hard, _Floor(a, p, c)
    out = flat.new_empty(len(flat), flat.shape[1], len(weight))
    for tile in tiles((len(a), *weight.shape)):
        own, found = weight[tile.outs], None
        lowest = floor.of(tile) - draw.cut if draw.hard else -math.inf
        if draw.hard and _off_share(lowest, draw) >= RARE:  # the logits may still tell that few are off
            found = _logits(a, p, c, tile)
            lowest = float(found.amin()) - draw.cut
        if _off_share(lowest, draw) == 0:
            out[tile.rows, :, tile.outs] = flat[tile.rows] @ own.T
            continue
        if draw.seed is not None and _off_share(lowest, draw) < RARE:
            masked = flat.new_empty(tile.shape(own), dtype=torch.float32).copy_(own)
            row, place, v = draw.rare(tile, own.numel(), flat.device)
            near = v <= _off_share(lowest, draw)
            place, v = place[near], v[near]
            at = row[near], place // own.shape[1], place % own.shape[1]
            logits = _some_logits(a, p, c, tile, at) if found is None else found[at]
            off = v <= logits.sub_(draw.cut).exp_().neg_().exp_()
            masked[tuple(index[off] for index in at)] = 0
            whole = whole and not bool(off.any())
        else:
            found = _logits(a, p, c, tile) if found is None else found
            drawn = _noise(found, tile, draw)
            mask = _bits(found, drawn, draw) if draw.hard else _soft(found, drawn, draw)
            whole = whole and bool(mask.all())  # is not asked again after the first weight that is off
            masked = mask.mul_(own)
        out[tile.rows, :, tile.outs] = torch.bmm(flat[tile.rows], masked.to(flat).transpose(1, 2))
    return out, whole


def _off_share(lowest: float, draw: Draw) -> float:
    """Return the share of weights that are off at most, where no l - cut is below the lowest: 0 if none can be.

    Without noise a weight is off iff l <= cut, with it where V <= exp(-exp(l - cut)).
    """
    if draw.seed is None:
        return 0.0 if draw.hard and lowest > 0 else 1.0
    return 0.0 if lowest > _SURE else 1.00001 * math.exp(-math.exp(lowest))


class _Floor:
    """A bound below all logits of a tile without making them: a p' >= -|a| |p|, which is tight before training.

    It is for float32 alone, in which the logits that are made afterwards agree with it.
    """

    def __init__(self, a: Tensor, p: Tensor | None, c: Tensor) -> None:
        self.known = p is not None and a.dtype == p.dtype == torch.float32
        if self.known:
            self.a, self.p = a.norm(dim=2), p.norm(dim=2).amax(1)
            self.c = float(c.amin()) - 1e-5  # for rounding

    def of(self, tile: Tile) -> float:
        """Return the tile's bound."""
        if not self.known:
            return -math.inf
        p = self.p[tile.rows] if len(self.p) > 1 else self.p
        return self.c - 1.0001 * float(self.a[tile.index].amax() * p.amax())


def _some_logits(a: Tensor, p: Tensor, c: Tensor, tile: Tile, at: tuple[Tensor, ...]) -> Tensor:
    """Return some logits of a tile, [n], by their indices [n] of row, output and input."""
    row, outs, ins = at
    own = p[tile.rows][row, ins] if len(p) > 1 else p[0, ins]
    return (a[tile.index][row, outs] * own).sum(1) + (c[ins] if c.ndim else c)


class _Fused(torch.autograd.Function):
    """The product tile by tile; saves its inputs only, and draws the same noise again on the way back."""

    @staticmethod
    def forward(ctx, flat, weight, a, p, c, draw):
        """Return [rows, n, out]."""
        ctx.save_for_backward(flat, weight, a, p, c)
        ctx.draw = draw
        return _forward(flat, weight, a, p, c, draw)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        """Return the gradients of inputs, weight and logits; masks pass theirs straight through to the sigmoid."""
        flat, weight, a, p, c = ctx.saved_tensors
        draw: Draw = ctx.draw
        need_x, need_w, need_a, need_p, need_c, _ = ctx.needs_input_grad
        dx = torch.zeros_like(flat) if need_x else None
        dw = torch.zeros_like(weight, dtype=torch.float32) if need_w else None
        da = torch.zeros_like(a) if need_a else None
        dp = torch.zeros_like(p) if need_p else None
        dc = torch.zeros(weight.shape[1], device=c.device) if need_c else None
        for tile in tiles((len(a), *weight.shape)):
            part, own = gradient[tile.rows, :, tile.outs], weight[tile.outs]
            found = _logits(a, p, c, tile)
            drawn = _noise(found, tile, draw)
            soft = _soft(found, drawn, draw)
            mask = _bits(found, drawn, draw) if draw.hard else soft
            if need_x:
                dx[tile.rows] += torch.bmm(part, (mask * own).to(part))
            if not (need_w or need_a or need_p or need_c):
                continue
            product = torch.bmm(part.transpose(1, 2), flat[tile.rows]).float()
            if need_w:
                dw[tile.outs] += (product * mask).sum(0)
            slope = product.mul_(own).mul_(soft * (1 - soft) / draw.tau)
            if need_c:
                dc += slope.sum((0, 1))
            if p is None:
                if need_a:
                    da[tile.index] = slope.to(a)
                continue
            factor = (p[tile.rows] if len(p) > 1 else p.expand(len(slope), -1, -1)).float()
            if need_a:
                da[tile.index] = torch.bmm(slope, factor).to(a)
            if need_p:
                back = torch.bmm(slope.transpose(1, 2), a[tile.index].float()).to(p)
                if len(p) > 1:
                    dp[tile.rows] += back
                else:
                    dp += back.sum(0, keepdim=True)
        if need_c and not c.ndim:
            dc = dc.sum()
        return dx, None if dw is None else dw.to(weight), da, dp, dc, None
