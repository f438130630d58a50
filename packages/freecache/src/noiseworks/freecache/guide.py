"""The autoregressive guide: a causal language model with a cache of keys that is rolled back by moving an index.

transformers' cache objects grow by concatenation, hold one length for all rows and change between releases. Here a
key stands at the absolute column of its token, so rows of a batch may differ in length, and rejecting drafts
means forgetting how far a row has come.
"""

from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache.tokens import TokenMap
from noiseworks.kits.masked_lm import DreamModel, LLaDAModelLM
from torch import Tensor, nn
from transformers.cache_utils import Cache

CHUNK = 32


class ColumnCache(Cache):
    """Keys and values [layers, B, G, N, d] that are written at each row's own columns."""

    def __init__(self) -> None:
        # Not the parent's: its layers grow by concatenation.
        self.layers = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.columns: Tensor | None = None
        self.capacity = self.rows = 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Write keys and values [B, G, n, d] at `columns` [B, n]; return those of all columns."""
        if layer_idx == len(self.keys):
            shape = (*key_states.shape[:2], self.capacity, key_states.shape[-1])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros(shape))
        keys, values = self.keys[layer_idx][: self.rows], self.values[layer_idx][: self.rows]
        index = self.columns[:, None, :, None].expand_as(key_states)
        keys.scatter_(2, index, key_states)
        values.scatter_(2, index, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns; positions are given explicitly, so nothing depends on it."""
        return self.capacity

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the rows, given in rising order."""
        for tensor in (*self.keys, *self.values):
            for place, row in enumerate(rows):
                if place != row:
                    tensor[place].copy_(tensor[row])
        self.rows = len(rows)


class Guide:
    """A causal language model that scores drafts after a cached, clean prefix.

    Args:
        model: Any transformers causal language model with rotary or learned absolute positions, in evaluation
            mode.
        tokens: The guide's ids of the masked model's ids, or None where they are the same
            (`noiseworks.freecache.tokens.token_map`).

    Raises:
        InputError: When the model is a masked one.

    Attributes:
        lengths: Columns with cached keys of each row, padding included, int64 [B].
        calls: Forwards since `reset`, the one over the prompts included.
    """

    def __init__(self, model: nn.Module, tokens: TokenMap | None = None) -> None:
        if isinstance(model, LLaDAModelLM | DreamModel):
            raise InputError("the guide must be a causal language model, got a masked one")
        self.model, self.map = model, tokens
        self.cache = ColumnCache()
        self.lengths, self.calls = torch.zeros(0, dtype=torch.long), 0

    @torch.no_grad()
    def reset(self, prompts: Tensor, attention_mask: Tensor | None, length: int) -> None:
        """Begin with new prompts: keys of all but the last token of each are cached.

        Args:
            prompts: int64 [B, P], left padded, in the guide's own ids.
            attention_mask: 1 for tokens and 0 for padding, [B, P].
            length: Columns in all, prompt and completion.

        Raises:
            InputError: In training mode, on an empty prompt, or when the guide takes fewer tokens.
        """
        if self.model.training:
            raise InputError("the guide is in training mode; call guide.eval() first")
        if prompts.shape[1] == 0:
            raise InputError("the guide needs a prompt of at least one token")
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise InputError(f"prompt and completion have {length} tokens, the guide takes {limit}")
        mask = torch.ones_like(prompts) if attention_mask is None else attention_mask.long()
        self._last_of_prompt = prompts[:, -1]
        self._prompt = prompts.shape[1]
        self._first = (mask == 0).sum(dim=1, keepdim=True)
        self.cache = ColumnCache()
        self.cache.capacity, self.cache.rows = length, len(prompts)
        self.lengths = prompts.new_zeros(len(prompts))
        self.calls = 0
        if prompts.shape[1] > 1:
            self._forward(prompts[:, :-1])
            self.lengths += prompts.shape[1] - 1

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        """Feed tokens after each row's cached prefix and return logits: row j for what follows token j.

        The cached prefix grows by the tokens; `crop` takes back those that are rejected.

        Args:
            tokens: int64 [B, n], in ids of the masked model.

        Returns:
            [B, n, V] over ids of the masked model.
        """
        ids = tokens if self.map is None else self.map.ids[tokens]
        # The prompt may be tokenised otherwise: its last token is the guide's own.
        at_prompt = self.lengths == self._prompt - 1
        first = torch.where(at_prompt, self._last_of_prompt, ids[:, 0])
        logits = self._forward(torch.cat([first.unsqueeze(1), ids[:, 1:]], dim=1))
        self.lengths = self.lengths + tokens.shape[1]
        if self.map is None:
            return logits
        return logits[..., self.map.ids].masked_fill(~self.map.exact, -torch.inf)

    def crop(self, lengths: Tensor) -> None:
        """Keep each row's first `lengths` columns, int64 [B]; nothing is copied.

        Raises:
            InputError: When a row would become longer than what is cached.
        """
        if bool((lengths > self.lengths).any()):
            raise InputError(
                f"cannot crop to {lengths.tolist()}: only {self.lengths.tolist()} columns are cached"
            )
        self.lengths = lengths

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the rows, given in rising order."""
        self.cache.keep(rows)
        self.lengths, self._first = self.lengths[rows], self._first[rows]
        self._last_of_prompt = self._last_of_prompt[rows]

    def _forward(self, tokens: Tensor) -> Tensor:
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        # Rows near the end of their text may be fed past it, in step with others: the last column takes those.
        columns = (self.lengths.unsqueeze(1) + steps).clamp(max=self.cache.capacity - 1)
        self.cache.columns = columns
        every = torch.arange(self.cache.capacity, device=tokens.device)
        seen = (every <= columns.unsqueeze(-1)) & (every >= self._first.unsqueeze(-1))
        # A column of padding sees itself: a softmax over nothing is NaN in some kernels.
        seen |= every == columns.unsqueeze(-1)
        # Added to the scores, so that every attention implementation reads it alike.
        dtype = self.model.get_input_embeddings().weight.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=tokens.device)
        mask = mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
        positions = (columns - self._first).clamp(min=0)
        self.calls += 1
        return self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
