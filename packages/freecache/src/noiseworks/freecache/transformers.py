"""The drop-in for samplers that know nothing of a cache: `apply_freecache(model)`.

Dream's own `diffusion_generate`, and any loop that calls the model on the whole canvas, gets the cached path: the
model's forward is replaced by one that computes from the first block with masks on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.freecache.cache import FreeCache
from noiseworks.kits.masked_lm import HostSpec, detect_host
from noiseworks.kits.masked_lm.hosts import unwrapped
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput


@contextmanager
def apply_freecache(
    model: nn.Module, *, block_length: int = 32, sliding: int = 0, spec: HostSpec | None = None
) -> Iterator["CachedForward"]:
    """Give a model a cached forward inside a `with` block; afterwards it is what it was.

    The first call on a canvas computes everything and freezes the prompt: what lies before the first mask. Later
    calls compute from the block of the first mask on, blocks being counted from the prompt's end, and freeze
    blocks that were already clean when they were last computed (the lazy rule). Rows of frozen positions have
    hidden states of zero: samplers read the rows of masks only. Another prompt, or a frozen token that changed,
    begins anew.

    Samplers that reveal tokens anywhere on the canvas save the prompt's cost; the more of the start is clean, the
    more they save.

    Args:
        model: A LLaDA or Dream model, native or of the released remote code, in evaluation mode.
        block_length: Tokens a block.
        sliding: Clean tokens before the block that every call computes anew; 0 freezes up to the block.
        spec: Its contract; by default detected.

    Yields:
        The handle, which counts `calls`, `rows` and `resets`.

    Raises:
        InputError: For another kind of model, in training mode, or when the model has a cached forward already.
    """
    check_number("block_length", block_length, low=1, integer=True)
    check_number("sliding", sliding, low=0, integer=True)
    host = unwrapped(model)
    names = ("forward", "hidden_states") if hasattr(host, "hidden_states") else ("forward",)
    if any(isinstance(getattr(host.__dict__.get(name), "__self__", None), CachedForward) for name in names):
        raise InputError("the model has a cached forward already; leave the first apply_freecache block")
    before = {name: host.__dict__[name] for name in names if name in host.__dict__}
    handle = CachedForward(model, block_length, sliding, detect_host(model) if spec is None else spec)
    for name in names:
        setattr(host, name, getattr(handle, name))
    try:
        yield handle
    finally:
        for name in names:
            delattr(host, name)
            if name in before:
                setattr(host, name, before[name])


class CachedForward:
    """The forward that `apply_freecache` puts in place of the model's.

    Args:
        model: The model.
        block_length: Tokens a block.
        sliding: Clean tokens before the block that are not frozen.
        spec: Its contract.

    Attributes:
        calls: Forwards so far.
        rows: Token rows that went through the layers so far, over the batch.
        resets: How often a new canvas began.
    """

    def __init__(self, model: nn.Module, block_length: int, sliding: int, spec: HostSpec) -> None:
        self.spec, self.block_length, self.sliding = spec, block_length, sliding
        self.cache = FreeCache(model, spec)
        self.calls = self.rows = self.resets = 0
        self._canvas: Tensor | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Return the logits [B, N, V] as the host gives them (not shifted); frozen rows are not meaningful.

        Args:
            input_ids: The canvas, int64 [B, N].
            attention_mask: 1 for tokens and 0 for padding, [B, N]; the same as a mask [B, 1, N, N]; "full"; None.
            position_ids: Accepted and not needed: rotary positions are relative.
            kwargs: What samplers pass besides, none of which asks for a cache.
        """
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache"):
            raise InputError("apply_freecache keeps its own cache; call the model without use_cache")
        hidden = self.hidden_states(input_ids, attention_mask, position_ids)
        return CausalLMOutput(logits=self.cache.access.head(hidden))

    @torch.no_grad()
    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the final, normalised features [B, N, D]; zero at frozen positions."""
        clean = int((input_ids != self.spec.mask_id).long().cumprod(dim=1).sum(dim=1).min())
        if not self._continues(input_ids, attention_mask):
            mask = _key_mask(attention_mask)
            self.cache.reset(*input_ids.shape, mask)
            self._mask, self._prompt = attention_mask, clean
            self.resets += 1
        committed, before = self.cache.committed, self.cache.rows
        hidden = self.cache.window(input_ids, committed)
        blocks = (clean - self._prompt) // self.block_length
        frozen = self._prompt + blocks * self.block_length - self.spec.shift - self.sliding
        self.cache.commit(max(frozen, committed, 0))
        self._canvas = input_ids.clone()
        self.calls += 1
        self.rows += self.cache.rows - before
        full = hidden.new_zeros(*input_ids.shape, hidden.shape[-1])
        full[:, committed:] = self.cache.access.norm(hidden)
        return full

    def _continues(self, canvas: Tensor, attention_mask: Tensor | str | None) -> bool:
        """Return whether the canvas is the last one with more tokens revealed."""
        last = self._canvas
        if last is None or last.shape != canvas.shape or last.device != canvas.device:
            return False
        same = (last == canvas) | (last == self.spec.mask_id)
        if isinstance(attention_mask, Tensor) != isinstance(self._mask, Tensor):
            return False
        if isinstance(attention_mask, Tensor) and not torch.equal(attention_mask, self._mask):
            return False
        return bool(same.all())


def _key_mask(attention_mask: Tensor | str | None) -> Tensor | None:
    """Return which positions are tokens, [B, N], from any mask that Dream's samplers pass."""
    if attention_mask is None or isinstance(attention_mask, str):
        return None
    if attention_mask.ndim == 2:
        return attention_mask
    # The outer AND of key and query mask: the last query is no padding, so its row is the key mask.
    return attention_mask[:, 0, -1]
