"""The cache of keys and values, the windowed forward, and the rules by which finished positions are frozen.

Every layer's keys (after rotary) and values stand at their absolute position in tensors that are allocated once.
A forward computes the hidden states of a window only; its queries read frozen keys before the window and fresh
keys inside it. Nothing ever moves, so one index says what is frozen.
"""

from typing import get_args

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.freecache.options import CommitRule
from noiseworks.kits.masked_lm import HostSpec, aligned_logits, detect_host, layer_access
from noiseworks.kits.masked_lm.arithmetic import attend
from torch import Tensor, nn

Positions = tuple[int, int] | Tensor | None


def kv_bytes_per_token(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of keys and values that one token takes: 2 · layers · key heads · head width · item size.

    Args:
        model: A LLaDA or Dream model; one on the meta device will do.
        dtype: Type of the cache, by default the model's.
    """
    access = layer_access(model)
    dtype = next(access.norm.parameters()).dtype if dtype is None else dtype
    return 2 * len(access.blocks) * access.blocks[0].kv_heads * access.head_dim * dtype.itemsize


class FreeCache:
    """Keys and values of a LLaDA or Dream model at absolute positions, and the forward that uses them.

    The unit of bookkeeping is the commit index c (`committed`): positions below c are frozen. A window may start
    at c or before, never after. The rule says what happens to a block that is finished (`finish`): its keys were
    computed while its last revealed tokens were still masks.

    - `lazy`: the next forward recomputes the block once with its final tokens, then freezes it. B more rows a
      block, no more calls.
    - `stale`: freezes what is there, masks included (the authors' code).
    - `eager`: one more call, on the finished block alone.

    Args:
        model: The host, adapted by peft or not, in evaluation mode.
        spec: Its contract; by default detected.
        commit: `lazy`, `stale` or `eager`.
        dtype: Type of the cache, by default the model's; attention is computed in it.
        max_length: Positions to allocate for; by default those of the first `reset`.

    Attributes:
        committed: The commit index c.
        calls: Forwards since `reset`.
        rows: Token rows that went through the layers since `reset`, over the batch.

    Raises:
        InputError: For another kind of model, or an unknown rule.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: HostSpec | None = None,
        *,
        commit: CommitRule = "lazy",
        dtype: torch.dtype | None = None,
        max_length: int | None = None,
    ) -> None:
        check_choice("commit", commit, get_args(CommitRule))
        self.model, self.spec, self.rule = model, detect_host(model) if spec is None else spec, commit
        self.access = layer_access(model)
        self.dtype, self.max_length = dtype, max_length
        self._keys = self._values = self._forbidden = None
        self.batch = self.length = self.committed = self.calls = self.rows = 0

    def reset(self, batch: int, length: int, attention_mask: Tensor | None = None) -> None:
        """Begin with new sequences; memory is kept where it is large enough.

        Args:
            batch: Sequences B.
            length: Positions N of each, prompt and completion.
            attention_mask: 1 for tokens and 0 for left padding, [B, N].

        Raises:
            InputError: In training mode, or when the text is longer than the model takes.
        """
        if self.model.training:
            raise InputError(
                "the model is in training mode; call model.eval() first, a cache of keys has no gradients"
            )
        if self.spec.max_length is not None and length > self.spec.max_length:
            raise InputError(
                f"prompt and completion have {length} tokens, the model takes {self.spec.max_length}"
            )
        weight = next(self.access.norm.parameters())
        self.device, dtype = weight.device, weight.dtype if self.dtype is None else self.dtype
        capacity = max(length, self.max_length or 0)
        block = self.access.blocks[0]
        shape = (len(self.access.blocks), batch, block.kv_heads, capacity, self.access.head_dim)
        have = None if self._keys is None else self._keys.shape
        fits = have is not None and have[1] >= batch and have[3] >= length
        if not fits or self._keys.dtype != dtype or self._keys.device != self.device:
            self._keys = torch.zeros(shape, dtype=dtype, device=self.device)
            self._values = torch.zeros_like(self._keys)
        self.batch, self.length, self._mask = batch, length, None
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            self._mask = attention_mask.to(self.device).bool()[:, None, None, :]
        self.committed = self.calls = self.rows = self._valid = 0
        self._pending: int | None = None
        self._finite: list[Tensor] = []

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, start: int, end: int | None = None, positions: Positions = None
    ) -> Tensor:
        """Return aligned logits (row for token i predicts token i) of positions inside a window.

        Args:
            tokens: The whole canvas, int64 [B, N].
            start: First position of the window, at most `committed`. A block that waits under the lazy rule is
                taken into the window and frozen afterwards.
            end: One past the last position of the window, and the last one that is seen; by default N.
            positions: Whose tokens to predict: (first, one past the last), int64 [B, n], or None for all that
                the window can predict. The head is computed only there.

        Returns:
            [B, n, V]; the mask id and ids that are no tokens have -inf.

        Raises:
            InputError: When the window starts beyond the commit index, a position is outside of it, or the
                canvas is not the one of `reset`.
        """
        start, end, seen = self._span(start, self.length if end is None else end, positions)
        hidden = self._window(tokens, start, end, seen)
        if self._pending is not None:
            self.commit(self._pending)
            self._pending = None
        rows = self._predicting(positions, start, end)
        hidden = hidden[:, rows] if isinstance(rows, slice) else _take(hidden, rows)
        logits = self.access.head(self.access.norm(hidden))
        if positions is None and start == 0 and self.spec.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return logits.masked_fill(self._forbid(logits), -torch.inf)

    @torch.no_grad()
    def window(self, tokens: Tensor, start: int) -> Tensor:
        """Return the hidden states [B, N - start, D] of a window, before the final norm; see `forward`."""
        return self._window(tokens, start, self.length, self.length)

    def commit(self, position: int) -> None:
        """Freeze the positions below `position`; later windows may start there.

        Raises:
            InputError: When the index falls, or passes what was computed.
        """
        if position < self.committed:
            raise InputError(f"the commit index cannot fall from {self.committed} to {position}; reset first")
        if position > self._valid:
            raise InputError(
                f"cannot freeze up to {position}: keys were computed up to {self._valid}; run a forward first"
            )
        self.committed = position

    @torch.no_grad()
    def finish(self, tokens: Tensor, position: int) -> None:
        """Freeze a finished block that ends before `position`, by the commit rule.

        Args:
            tokens: The canvas with the block's final tokens, int64 [B, N].
            position: One past the last position to freeze.
        """
        if self.rule == "eager":
            self._window(tokens, self.committed, position, self._valid)
        if self.rule == "lazy":
            self._pending = position
        else:
            self.commit(position)

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the sequences only; their keys move up in place.

        Args:
            rows: Indices in rising order.
        """
        for place, row in enumerate(rows):
            if place != row:
                self._keys[:, place].copy_(self._keys[:, row])
                self._values[:, place].copy_(self._values[:, row])
        self._mask = None if self._mask is None else self._mask[rows]
        self.batch = len(rows)

    def memory_bytes(self) -> int:
        """Return the bytes that keys and values hold."""
        if self._keys is None:
            return 0
        return 2 * self._keys.numel() * self._keys.element_size()

    def frozen(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys (after rotary) and values [B, G, N, d], as views.

        Args:
            layer: Index of the layer.
        """
        view = (layer, slice(self.batch), slice(None), slice(self.length))
        return self._keys[view], self._values[view]

    def check_finite(self, tokens: Tensor) -> None:
        """Stop when a forward since the last check gave NaN or infinity; one copy from the device.

        Args:
            tokens: The canvas, to find the layer with.

        Raises:
            NonFiniteError: Naming the call and the layer.
        """
        if self._finite:
            checks = torch.stack(self._finite)
            first = self.calls - len(checks)
            self._finite = []
            if not bool(checks.all()):
                call = first + int((~checks).nonzero()[0])
                raise NonFiniteError(
                    f"hidden states are not finite at network call {call}, {self._bad_layer(tokens)}"
                )

    @torch.no_grad()
    def _bad_layer(self, tokens: Tensor) -> str:
        hidden = self.access.embed(tokens)
        if not bool(hidden.isfinite().all()):
            return "first in the embedding"
        for index in range(len(self.access.blocks)):
            hidden = self._layer(index, hidden, 0, self._mask, self.length)
            if not bool(hidden.isfinite().all()):
                return f"first after layer {index}"
        return "in no layer when all positions are computed anew"

    def _window(self, tokens: Tensor, start: int, end: int, seen: int) -> Tensor:
        """Return hidden states [B, end - start, D] before the final norm; keys below `seen` are read."""
        self._check_window(tokens, start, end)
        mask = None if self._mask is None else self._mask[..., :seen]
        hidden = self.access.embed(tokens[:, start:end])
        for index in range(len(self.access.blocks)):
            hidden = self._layer(index, hidden, start, mask, seen)
        self._valid = max(self._valid, end)
        self.rows += self.batch * (end - start)
        self.calls += 1
        self._finite.append(hidden.isfinite().all())
        return hidden

    def _layer(self, index: int, hidden: Tensor, start: int, mask: Tensor | None, seen: int) -> Tensor:
        block = self.access.blocks[index]
        end = start + hidden.shape[1]
        positions = torch.arange(start, end, device=hidden.device)
        q, k, v = block.qkv(block.norm1(hidden))
        q, k = self.access.rotary(q, positions), self.access.rotary(k, positions)
        keys, values = self._keys[index, : self.batch], self._values[index, : self.batch]
        keys[:, :, start:end], values[:, :, start:end] = k, v
        read = attend(q.to(keys.dtype), keys[:, :, :seen], values[:, :, :seen], mask).to(hidden.dtype)
        hidden = hidden + block.out(read)
        return hidden + block.mlp(block.norm2(hidden))

    def _span(self, start: int, end: int, positions: Positions) -> tuple[int, int, int]:
        """Return where a forward's window starts and ends, and one past the last key that it reads."""
        if self._pending is not None:
            start = min(start, self.committed)
        return start, end, end

    def _predicting(self, positions: Positions, start: int, end: int) -> slice | Tensor:
        """Return the window's rows that predict `positions`."""
        shift = self.spec.shift
        if positions is None:
            return slice(0, end - start)
        if isinstance(positions, tuple) and positions[0] < shift:
            # No row predicts the first token of a shifted host: row 0 stands in, as in `aligned_logits`.
            positions = torch.arange(*positions, device=self.device).expand(self.batch, -1)
        if isinstance(positions, tuple):
            first, last = positions[0] - shift, positions[1] - shift
            if first < start or last > end or last <= first:
                raise InputError(
                    f"the window {start} … {end} cannot predict the tokens {positions[0]} … {positions[1]}"
                )
            return slice(first - start, last - start)
        return (positions - shift - start).clamp(0, end - start - 1)

    def _check_window(self, tokens: Tensor, start: int, end: int) -> None:
        if tokens.shape != (self.batch, self.length) or tokens.device != self.device:
            raise InputError(
                f"the cache was reset for {self.batch} x {self.length} tokens on {self.device}, got "
                f"{tuple(tokens.shape)} on {tokens.device}; call reset first"
            )
        if not 0 <= start < end <= self.length:
            raise InputError(f"need a window inside 0 … {self.length}, got {start} … {end}")
        if start > self.committed:
            raise InputError(
                f"the window starts at {start} but only positions below {self.committed} are frozen; commit first"
            )

    def _forbid(self, logits: Tensor) -> Tensor:
        if self._forbidden is None or self._forbidden.device != logits.device:
            size = logits.shape[-1]
            limit = size if self.spec.vocab_limit is None else self.spec.vocab_limit
            self._forbidden = torch.arange(size, device=logits.device) >= limit
            self._forbidden[self.spec.mask_id] = True
        return self._forbidden


class Recompute:
    """No cache: the host's own forward on the whole canvas at every call, with the interface of `FreeCache`.

    Args:
        model: The host.
        spec: Its contract; by default detected.

    Attributes:
        committed: Always 0.
        calls: Forwards since `reset`.
        rows: Token rows that went through the layers since `reset`, over the batch.
    """

    def __init__(self, model: nn.Module, spec: HostSpec | None = None) -> None:
        self.model, self.spec = model, detect_host(model) if spec is None else spec
        self.committed = 0

    def reset(self, batch: int, length: int, attention_mask: Tensor | None = None) -> None:
        """Begin with new sequences; arguments of `FreeCache.reset`."""
        if self.model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        self.batch, self.length, self.calls, self.rows = batch, length, 0, 0
        padded = attention_mask is not None and not bool(attention_mask.bool().all())
        self._mask = attention_mask if padded else None

    @torch.no_grad()
    def forward(
        self, tokens: Tensor, start: int, end: int | None = None, positions: Positions = None
    ) -> Tensor:
        """Return aligned logits of `positions`; `start` is only a window's, and the whole canvas is computed."""
        end = self.length if end is None else end
        self.calls += 1
        self.rows += self.batch * end
        if isinstance(positions, tuple):
            positions = torch.arange(*positions, device=tokens.device).expand(self.batch, -1)
        mask = None if self._mask is None else self._mask[:, :end]
        logits = aligned_logits(self.model, tokens[:, :end], mask, spec=self.spec, positions=positions)
        self._finite = ~logits.isnan().any()
        return logits

    def commit(self, position: int) -> None:
        """Freeze nothing."""

    def finish(self, tokens: Tensor, position: int) -> None:
        """Freeze nothing."""

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the sequences only."""
        self.batch = len(rows)
        self._mask = None if self._mask is None else self._mask[rows]

    def memory_bytes(self) -> int:
        """Return 0."""
        return 0

    def check_finite(self, tokens: Tensor) -> None:
        """Stop when the last forward gave NaN logits."""
        if not bool(self._finite):
            raise NonFiniteError(f"logits hold NaN at network call {self.calls - 1}")


def _take(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
