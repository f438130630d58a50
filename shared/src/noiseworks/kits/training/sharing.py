"""Which rows of a batch a process has, so that several processes draw what one process would."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Rows:
    """A process's rows of a batch that all processes share.

    `fit` begins in all of them with the same random state. A loss that draws for the whole batch, and takes its rows of
    that, uses the same noise for the same image whatever their number is; one that draws for its own rows gives each
    process the same noise over again. Such draws also keep the random states alike.

        own = Rows.of(len(images))
        t = own.draw(lambda rows: torch.randint(1000, (rows,)))

    Attributes:
        first: The first one.
        count: How many.
        total: Rows of the whole batch.
    """

    first: int
    count: int
    total: int

    @classmethod
    def of(cls, count: int) -> Self:
        """Return this process's rows, as `Batches.part` deals them.

        Args:
            count: Rows that it has, as has every other one.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, count, count)
        return cls(distributed.get_rank() * count, count, distributed.get_world_size() * count)

    def draw(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return this process's rows of a draw for the whole batch.

        Args:
            draw: Number of rows -> that many rows.
        """
        return self.take(draw(self.total))

    def noise_like(self, images: Tensor) -> Tensor:
        """Return normal noise of the shape of this process's rows."""
        kind = {"dtype": images.dtype, "device": images.device}
        return self.draw(lambda rows: torch.randn(rows, *images.shape[1:], **kind))

    def take(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor that has one for each of the whole batch."""
        return whole[self.first : self.first + self.count]
