"""Retrieval-augmented diffusion: conditioning on the nearest neighbours of an embedding in a database.

The sequence that cross-attention sees is the embeddings of the k nearest entries of a database, with or without
the query in front of them. Embeddings of the query are compared by cosine, so any encoder will do whose vectors
of queries and entries live in one space (CLIP's images and captions, or `FeatureNet.embed` of images). The
database can be exchanged after training.

Source: section 2 of arXiv 2204.11824 (retrieval-augmented diffusion models), and the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from torch import Tensor

INDEX_KIND = "ldm/neighbors"
_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Neighbors:
    """The nearest entries of queries, nearest first.

    Attributes:
        ids: Rows of the database, int64 `[B, k]`.
        similarity: Cosines, `[B, k]`.
        embeddings: The entries, of length one, `[B, k, D]`.
    """

    ids: Tensor
    similarity: Tensor
    embeddings: Tensor


class NeighborIndex:
    """An exact nearest-neighbour search by cosine.

    Args:
        embeddings: The database, `[N, D]`; kept at length one, in float32.

    Raises:
        InputError: When they are not `[N, D]`, or one is zero.
        NonFiniteError: When they are not finite.
    """

    def __init__(self, embeddings: Tensor) -> None:
        if embeddings.ndim != 2 or not len(embeddings):
            raise InputError(f"a database is [N, D] with N >= 1, got shape {tuple(embeddings.shape)}")
        check_finite("the database's embeddings", embeddings)
        lengths = embeddings.float().norm(dim=1, keepdim=True)
        if (lengths == 0).any():
            raise InputError(f"embedding {int(lengths.argmin())} is zero and has no direction; leave it out")
        self.embeddings = embeddings.detach().float() / lengths

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: Tensor, k: int, exclude: Tensor | None = None) -> Neighbors:
        """Return the k nearest entries of each query.

        Args:
            queries: `[B, D]`, of any length.
            k: Number of neighbours.
            exclude: A row of the database for each query that is not to be found, int64 `[B]`: the training
                image itself.

        Raises:
            InputError: When the shapes do not fit, or the database holds too few entries.
        """
        spare = 0 if exclude is None else 1
        check_number("k", k, low=1, high=len(self) - spare, integer=True)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1]:
            raise InputError(
                f"queries must be [B, {self.embeddings.shape[1]}], got shape {tuple(queries.shape)}"
            )
        found = []
        rows = max(1, _CHUNK_ELEMENTS // len(self))
        for start in range(0, len(queries), rows):
            part = F.normalize(queries[start : start + rows].detach().to(self.embeddings), dim=1)
            cosine = part @ self.embeddings.T
            if exclude is not None:
                cosine.scatter_(1, exclude[start : start + rows, None].to(cosine.device), -torch.inf)
            found.append(cosine.topk(k, dim=1))
        similarity, ids = (torch.cat([part[place] for part in found]) for place in range(2))
        return Neighbors(ids, similarity, self.embeddings[ids])

    def sequence(
        self, queries: Tensor, k: int, *, exclude: Tensor | None = None, with_query: bool = False
    ) -> Tensor:
        """Return what `NeighborConditioner` takes, `[B, k, D]`, or `[B, 1 + k, D]` with the query in front.

        Args:
            queries: `[B, D]`, of any length.
            k: Number of neighbours.
            exclude: See `search`.
            with_query: Whether the query itself comes first, at length one.
        """
        found = self.search(queries, k, exclude).embeddings
        if not with_query:
            return found
        return torch.cat([F.normalize(queries.to(found), dim=1)[:, None], found], dim=1)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the database as an artifact."""
        save_artifact(path, INDEX_KIND, {"entries": len(self)}, {"embeddings": self.embeddings})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "NeighborIndex":
        """Return the database that `save_pretrained` wrote."""
        return cls(load_artifact(path, INDEX_KIND)[1]["embeddings"])


class NeighborConditioner(Conditioner):
    """Embeddings of neighbours as the sequence for cross-attention, as they are; the null condition is zeros.

    Batch key: `"neighbors"`, `[B, L, dim]`, from `NeighborIndex.sequence`. L may differ between training and
    sampling.

    Args:
        dim: Width of the embeddings, the U-Net's `cross_attention_dim`.
    """

    kind = "crossattn"
    default_drop = 0.1

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_number("dim", dim, low=1, integer=True)
        self.dim = dim

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the embeddings; dropped rows are 0.

        Raises:
            InputError: When they are not `[B, L, dim]`.
        """
        neighbors = batch["neighbors"]
        if neighbors.ndim != 3 or neighbors.shape[2] != self.dim:
            raise InputError(f"neighbors must be [B, L, {self.dim}], got shape {tuple(neighbors.shape)}")
        if drop is not None:
            neighbors = neighbors * ~drop.view(-1, 1, 1)
        return Condition(crossattn=neighbors)
