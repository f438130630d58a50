"""Batches in an order that depends on (seed, epoch) alone, so that a killed run goes on where it stopped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Transform = Callable[[dict, torch.Generator], dict]


class TensorTable(Dataset):
    """Rows of named tensors (cached latents, labels, token ids), read a whole batch at a time.

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


class _EpochBatches(Sampler):
    """Index batches of one rank; epoch e is the permutation drawn from (seed, e).

    Short batches are left out, and so are batches that do not fill a window of `accumulate`.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int, world_size: int, accumulate: int
    ) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world_size = (
            size,
            batch_size,
            seed,
            rank,
            world_size,
        )
        self.accumulate = accumulate
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        batches = self.size // (self.batch_size * self.world_size)
        return batches - batches % self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        stride = self.batch_size * self.world_size
        for step in range(self.start, len(self)):
            first = step * stride + self.rank * self.batch_size
            yield order[first : first + self.batch_size].tolist()


def _keep(batch: object) -> object:
    return batch


class ResumableLoader(DataLoader):
    """A `DataLoader` whose position is part of a Lightning checkpoint.

    Under several processes give each its rank, and give the `Trainer` `use_distributed_sampler=False`.

    Args:
        dataset: Anything with a length; a `TensorTable` is read by whole batches.
        batch_size: Rows of a batch of one process; a short last batch is dropped.
        seed: The order of epoch e is drawn from (seed, e).
        num_workers: Loading processes.
        rank: This process's number.
        world_size: Number of processes.
        transform: (batch, generator) -> batch, applied to every batch; the generator depends on (seed, epoch,
            batch, rank) alone.
        repeat: Whether every pass is the first one over again, as validation wants it.
        accumulate: Batches of an optimiser step; an epoch holds whole windows of so many.

    Raises:
        InputError: When the dataset holds less than one window of batches for every process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        transform: Transform | None = None,
        repeat: bool = False,
        accumulate: int = 1,
    ) -> None:
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("accumulate", accumulate, low=1, integer=True)
        needed = batch_size * world_size * accumulate
        if len(dataset) < needed:
            several = f", {accumulate} batches a step," if accumulate > 1 else ""
            raise InputError(
                f"batch_size {batch_size} on {world_size} processes{several} needs at least {needed} "
                f"examples, the data hold {len(dataset)}; use a smaller batch"
            )
        batches = _EpochBatches(len(dataset), batch_size, seed, rank, world_size, accumulate)
        self.transform, self.seed, self.rank, self.repeat = transform, seed, rank, repeat
        collate = _keep if hasattr(dataset, "__getitems__") else None
        own = torch.Generator().manual_seed(
            seed
        )  # making an iterator must not advance the global random state
        super().__init__(
            dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=collate, generator=own
        )
        self._epoch, self._batch = 0, 0

    def __iter__(self) -> Iterator:
        if self.repeat:
            self._epoch, self._batch = 0, 0
        elif self._batch >= len(self):  # Lightning stops at the last batch without exhausting the iterator
            self._epoch, self._batch = self._epoch + 1, 0
        sampler = self.batch_sampler
        sampler.epoch, sampler.start = self._epoch, self._batch
        for batch in super().__iter__():
            if self.transform is not None:
                state = mix64(self.seed, self._epoch, self._batch, self.rank) >> 1
                batch = self.transform(batch, torch.Generator().manual_seed(state))
            self._batch += 1  # counted before the batch is used: a checkpoint is written after its step
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position of `state_dict`."""
        self._epoch, self._batch = state["epoch"], state["batch"]


def loader_position(trainer: Any) -> dict[str, int] | None:
    """Return the position of a trainer's training loader, for a checkpoint; None where it has none."""
    loader = trainer.train_dataloader
    return loader.state_dict() if hasattr(loader, "state_dict") else None


def restore_loader(trainer: Any, position: Mapping[str, int] | None) -> None:
    """Set the training loader to a position of `loader_position`.

    Lightning restores a loader itself, but not when the run had been stopped within an epoch on purpose.
    """
    if position is not None:
        trainer.train_dataloader.load_state_dict(position)
