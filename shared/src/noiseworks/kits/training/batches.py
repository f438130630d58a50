"""Batches in an order that depends on (seed, epoch) alone, so that a stopped run goes on where it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Transform = Callable[[dict, torch.Generator], dict]
_ORDER = 2  # the stream of random numbers that orders epochs


class TensorTable(Dataset):
    """Rows of named tensors (windows, cached latents, token ids), read a whole batch at a time.

    Args:
        tensors: Name -> tensor whose first dimension counts the rows.

    Raises:
        InputError: When the table is empty or the tensors' lengths differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if not lengths or len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise InputError(
                f"a table needs tensors of one common length of at least 1, got lengths {lengths}"
            )
        self.tensors = dict(tensors)
        self.length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


class Batches:
    """Batches of rows; epoch e is the permutation drawn from (seed, e), its short rest is left out.

    Iterating goes through one epoch, or the rest of it; the next iteration is the next epoch. `endless` never stops.
    Each process of several has its own part of every batch (`part`), so their number changes no batch.

    Args:
        rows: Named tensors of one length, or a dataset whose items are mappings.
        batch_size: Rows of a batch, over all processes.
        seed: Of the order and of `transform`.
        accumulate: Batches of an optimiser step; an epoch holds whole steps.
        num_workers: Loading processes.
        transform: (batch, generator) -> batch, applied to every batch; the generator depends on (seed, epoch, batch)
            alone, so that of several processes each draws for all rows and takes its own (`Rows`).
        repeat: Whether every epoch is the first one over again, as validation wants it.

    Raises:
        InputError: When there are fewer rows than one optimiser step takes.
    """

    def __init__(
        self,
        rows: Mapping[str, Tensor] | Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        accumulate: int = 1,
        num_workers: int = 0,
        transform: Transform | None = None,
        repeat: bool = False,
    ) -> None:
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("accumulate", accumulate, low=1, integer=True)
        check_number("num_workers", num_workers, low=0, integer=True)
        self.rows = TensorTable(rows) if isinstance(rows, Mapping) else rows
        if len(self.rows) < batch_size * accumulate:
            several = f" times accumulate {accumulate}" if accumulate > 1 else ""
            raise InputError(
                f"batch_size {batch_size}{several} needs at least {batch_size * accumulate} rows, "
                f"the data hold {len(self.rows)}; use a smaller batch"
            )
        self.batch_size, self.seed, self.accumulate = batch_size, seed, accumulate
        self.num_workers, self.transform, self.repeat = num_workers, transform, repeat
        self.rank, self.world_size = 0, 1
        self._epoch, self._batch = 0, 0

    def part(self, rank: int, world_size: int) -> "Batches":
        """Return one process's part of every batch.

        Args:
            rank: The process's number.
            world_size: Number of processes.

        Raises:
            InputError: When the batch cannot be shared evenly.
        """
        if self.batch_size % world_size:
            raise InputError(
                f"batch_size must be a multiple of the {world_size} processes, got {self.batch_size}"
            )
        made = Batches(
            self.rows,
            self.batch_size,
            seed=self.seed,
            accumulate=self.accumulate,
            num_workers=self.num_workers,
            transform=self.transform,
            repeat=self.repeat,
        )
        made.rank, made.world_size = rank, world_size
        made.load_state_dict(self.state_dict())
        return made

    def __len__(self) -> int:
        batches = len(self.rows) // self.batch_size
        return batches - batches % self.accumulate

    def __iter__(self) -> Iterator[Any]:
        if self.repeat:
            self._epoch, self._batch = 0, 0
        elif self._batch >= len(self):  # a reader may stop at the last batch without exhausting the iterator
            self._epoch, self._batch = self._epoch + 1, 0
        for batch in self._loader():
            if self.transform is not None:
                state = mix64(self.seed, self._epoch, self._batch, 0) >> 1
                batch = self.transform(batch, torch.Generator().manual_seed(state))
            self._batch += 1  # counted before the batch is used: a checkpoint is written after its step
            yield batch

    def endless(self) -> Iterator[Any]:
        """Go through one epoch after the other."""
        while True:
            yield from self

    def _loader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(mix64(self.seed, self._epoch, _ORDER) >> 1)
        order = torch.randperm(len(self.rows), generator=generator)
        own = self.batch_size // self.world_size
        firsts = [batch * self.batch_size + self.rank * own for batch in range(self._batch, len(self))]
        return DataLoader(
            self.rows,
            batch_sampler=[order[first : first + own].tolist() for first in firsts],
            num_workers=self.num_workers,
            collate_fn=_keep if hasattr(self.rows, "__getitems__") else None,
            generator=generator,  # an iterator must not advance the global random state
        )

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position of `state_dict`."""
        self._epoch, self._batch = state["epoch"], state["batch"]


def _keep(batch: object) -> object:
    return batch
