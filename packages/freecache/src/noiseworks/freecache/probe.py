"""How far keys and values drift from one step to the next: what FreeCache assumes to be small, measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache.cache import FreeCache
from noiseworks.freecache.decoding import decode_blocks
from noiseworks.freecache.options import Caching, Sampling
from noiseworks.kits.masked_lm import HostSpec
from torch import Tensor, nn

KINDS = ("clean", "just_unmasked", "masked")


@dataclass(frozen=True, eq=False)
class Drift:
    """Relative change ‖K_t - K_{t-1}‖ / ‖K_{t-1}‖ of keys and of values, averaged over positions of a kind.

    Kinds: `clean` (revealed before step t - 1, prompt included), `just_unmasked` (revealed by it) and `masked`.

    Attributes:
        keys: Kind -> float64 [T - 1, layers]; NaN where a step has no position of the kind.
        values: The same of the values.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]

    def means(self) -> dict[str, list[float | None]]:
        """Return the mean over steps of keys and values together, by kind, one number a layer.

        It is None for kinds without positions.
        """
        found = {kind: ((self.keys[kind] + self.values[kind]) / 2).nanmean(dim=0) for kind in KINDS}
        return {kind: [None if m != m else m for m in mean.tolist()] for kind, mean in found.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return one record a tensor, kind, step and layer."""
        return [
            {"tensor": name, "kind": kind, "step": step, "layer": layer, "relative_change": value}
            for name, part in (("keys", self.keys), ("values", self.values))
            for kind, table in part.items()
            for step, row in enumerate(table.tolist(), start=1)
            for layer, value in enumerate(row)
        ]


@torch.no_grad()
def probe_drift(
    model: nn.Module,
    input_ids: Tensor,
    sampling: Sampling,
    *,
    attention_mask: Tensor | None = None,
    spec: HostSpec | None = None,
    seeds: Sequence[int] | None = None,
) -> Drift:
    """Decode with everything computed at every step and record how much keys and values change.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        sampling: Lengths, steps, order and draws, by a schedule; at least 2 steps.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        spec: The host's contract; by default detected.
        seeds: One seed a row.

    Raises:
        InputError: When there are fewer than 2 steps, or a prompt cannot be completed.
    """
    recorder = _Recorder(model, spec)
    # A threshold may reveal everything at once, and then nothing can drift.
    sampling = replace(sampling, reveal="schedule", early_stop=0)
    if sampling.blocks * sampling.block_steps < 2:
        raise InputError("drift is what changes between two steps; take at least 2 steps")
    decode_blocks(recorder, input_ids, attention_mask, sampling, Caching(sliding=0), seeds=seeds)
    found = {"keys": recorder.key_drift, "values": recorder.value_drift}
    drift = {
        name: {kind: torch.stack([step[kind] for step in steps]) for kind in KINDS}
        for name, steps in found.items()
    }
    return Drift(drift["keys"], drift["values"])


class _Recorder(FreeCache):
    """A cache that freezes nothing and compares every forward's keys and values with the last one's."""

    def reset(self, batch: int, length: int, attention_mask: Tensor | None = None) -> None:
        super().reset(batch, length, attention_mask)
        self.key_drift, self.value_drift, self._before = [], [], None

    def forward(self, tokens, start, end=None, positions=None) -> Tensor:
        logits = super().forward(tokens, 0, end, positions)
        layers = [self.frozen(index) for index in range(len(self.access.blocks))]
        keys, values = (torch.stack(part).clone() for part in zip(*layers, strict=True))
        if self._before is not None:
            old_tokens, old_keys, old_values = self._before
            masked, was = tokens == self.spec.mask_id, old_tokens == self.spec.mask_id
            real = torch.ones_like(masked) if self._mask is None else self._mask[:, 0, 0]
            kinds = {"clean": ~was & real, "just_unmasked": was & ~masked, "masked": masked}
            self.key_drift.append(relative_change(keys, old_keys, kinds))
            self.value_drift.append(relative_change(values, old_values, kinds))
        self._before = (tokens.clone(), keys, values)
        return logits

    def commit(self, position: int) -> None:
        """Freeze nothing."""

    def finish(self, tokens: Tensor, position: int) -> None:
        """Freeze nothing."""


def relative_change(now: Tensor, before: Tensor, kinds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean over a kind's positions of ‖now - before‖ / ‖before‖, float64 [layers] by kind.

    Args:
        now: [layers, B, G, N, d].
        before: The same, one step earlier.
        kinds: Kind -> bool [B, N].
    """
    norm = before.double().square().sum(dim=(2, 4)).sqrt()
    change = (now - before).double().square().sum(dim=(2, 4)).sqrt() / norm.clamp(min=1e-12)
    nothing = torch.full((len(now),), torch.nan, dtype=torch.float64, device=now.device)
    return {
        kind: change[:, where].mean(dim=1) if bool(where.any()) else nothing for kind, where in kinds.items()
    }
