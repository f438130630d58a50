"""Which prompts a round trains on: epochs over the data (or over its selected part), shuffled by seed and epoch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from noiseworks.core import noise
from noiseworks.core.errors import InputError
from noiseworks.mdpo.prompts import Row


@dataclass
class PromptOrder:
    """Where a run stands in its data; plain values, so that a checkpoint can hold it.

    Attributes:
        seed: Of the order.
        epoch: Epochs finished.
        offset: Prompts of the present epoch that were used.
        indices: The epoch's prompts, in order; empty before it begins.
        block_lengths: The block length of each.
    """

    seed: int
    epoch: int = 0
    offset: int = 0
    indices: tuple[int, ...] = ()
    block_lengths: tuple[int, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)

    def next(
        self,
        rows: Sequence[Row],
        count: int,
        choose: Callable[[int], tuple[Sequence[int], Sequence[int]]],
    ) -> tuple[list[Row], list[int]]:
        """Return the next `count` rows and their block lengths; the end of an epoch is filled from its start.

        Args:
            rows: The data.
            count: Prompts of a round, over all processes.
            choose: Called with the epoch when one begins; returns its prompts and their block lengths.

        Raises:
            InputError: When no prompt was chosen.
        """
        if self.offset >= len(self.indices):
            self._begin(*choose(self.epoch))
        places = [(self.offset + i) % len(self.indices) for i in range(count)]
        self.offset += count
        if self.offset >= len(self.indices):
            self.epoch += 1
        return [rows[self.indices[i]] for i in places], [self.block_lengths[i] for i in places]

    def _begin(self, indices: Sequence[int], block_lengths: Sequence[int]) -> None:
        if not len(indices):
            raise InputError("no prompt of the data is over-denoised; set select to false or give more data")
        order = noise.permutation(noise.SeedSpec(self.seed).keys([self.epoch]), len(indices))[0].tolist()
        self.indices = tuple(indices[i] for i in order)
        self.block_lengths = tuple(block_lengths[i] for i in order)
        self.offset = 0
