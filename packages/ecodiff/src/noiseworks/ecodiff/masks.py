"""The learned logits: one a unit, with the draws of masks from them, saved as `config.json` and safetensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.ecodiff.hard_concrete import Kind, Penalty, mask_of, penalty
from noiseworks.kits.attachments import Attachment
from noiseworks.kits.diffusers_hosts.units import Units, mask_units
from torch import Tensor, nn

KIND = "ecodiff/masks"
NAME = "ecodiff"


@dataclass
class MaskSet:
    """Logits of a denoiser's units.

    Attributes:
        logits: Path -> λ, float32 `[count]` whatever the denoiser's precision.
        kinds: Path -> "attn", "ffn" or "norm".
        updates: Optimiser steps that made them.
    """

    logits: dict[str, Tensor]
    kinds: dict[str, str]
    updates: int = 0

    @classmethod
    def new(cls, units: Units, start: float) -> "MaskSet":
        """Return logits that are all `start`."""
        logits = {path: torch.full((group.count,), float(start)) for path, group in units.groups.items()}
        return cls(logits, {path: group.kind for path, group in units.groups.items()})

    def family(self, kind: str) -> list[Tensor]:
        """Return the logits of each layer of a family."""
        return [values for path, values in self.logits.items() if self.kinds[path] == kind]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are there."""
        return tuple(kind for kind in ("attn", "ffn", "norm") if self.family(kind))

    def draw(
        self, kind: Kind = "hard_concrete", eps: float = 0.5, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return masks by path, with a graph to the logits where those require gradients."""
        return {path: mask_of(values, kind, eps, generator) for path, values in self.logits.items()}

    def penalty(self, kind: Penalty, bounded: bool) -> Tensor:
        """Return the sum of the families' penalties, a scalar."""
        return torch.stack([penalty(self.family(one), kind, bounded) for one in self.families]).sum()

    def sparsity(self, threshold: float = 0.0) -> dict[str, float]:
        """Return the share of each family's units whose logit is at most the threshold."""
        joined = {kind: torch.cat(self.family(kind)) for kind in self.families}
        return {kind: float((values <= threshold).float().mean()) for kind, values in joined.items()}

    def attach(
        self,
        model: nn.Module,
        units: Units,
        kind: Kind = "threshold",
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> Attachment:
        """Let a denoiser run with masked units, nothing removed; the handle's `detach` restores it bit for bit.

        Args:
            model: The denoiser.
            units: Its units.
            kind: How masks are made of the logits; noise is drawn once, from seed 0.
            kept: Instead of that, the units that stay.
        """
        if kept is None:
            masks = {
                k: m.detach() for k, m in self.draw(kind, generator=torch.Generator().manual_seed(0)).items()
            }
        else:
            masks = {path: torch.zeros(len(values)) for path, values in self.logits.items()}
            for path, numbers in kept.items():
                masks[path][list(numbers)] = 1.0
        return mask_units(model, units, masks, NAME)

    def check_fits(self, units: Units) -> None:
        """Refuse a denoiser that these masks are not of.

        Raises:
            InputError: Naming the first layer that differs.
        """
        own = {path: len(values) for path, values in self.logits.items()}
        theirs = {path: group.count for path, group in units.groups.items()}
        for path in [*own, *theirs]:
            if own.get(path) != theirs.get(path):
                raise InputError(
                    f"the masks are of another model: {path} has {own.get(path, 0)} units there and "
                    f"{theirs.get(path, 0)} here"
                )

    def save_pretrained(self, path: str | Path) -> None:
        """Write the logits to a folder, atomically."""
        save_artifact(path, KIND, {"kinds": self.kinds, "updates": self.updates}, self.logits)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "MaskSet":
        """Read logits that `save_pretrained` wrote.

        Raises:
            ArtifactError: When the folder is missing, corrupt or of another kind.
        """
        config, tensors = load_artifact(path, KIND, loose=())
        kinds = config.get("kinds")
        if not isinstance(kinds, dict) or kinds.keys() != tensors.keys():
            raise ArtifactError(
                f"the masks in {path} are corrupt: names and tensors differ; learn them again"
            )
        return cls({name: tensors[name] for name in kinds}, kinds, int(config.get("updates", 0)))
