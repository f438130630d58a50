"""Images of opponents for winners' prompts that are drawn once and kept, in memory and in the run's folder."""

from pathlib import Path

import torch
from noiseworks.core.artifacts import atomic_write, read_tensors
from safetensors.torch import save
from torch import Tensor


class KeptSamples:
    """Latents by checkpoint and winner.

    What a step draws anew is one file. A run that goes on so finds exactly what it had drawn, in the same batches, and
    reaches the same numbers to the last bit.

    Args:
        folder: Where they are kept, or None for memory alone; what it holds is read.
        rank: Number of this process, which keeps what it drew itself.

    Raises:
        ArtifactError: When a file is corrupt.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self._known: dict[tuple[int, int], Tensor] = {}
        for file in sorted(folder.glob(f"*-{rank}.safetensors")) if folder is not None else ():
            found = read_tensors(file)
            self._remember(int(found["opponent"]), found["rows"], found["latents"])

    def missing(self, opponent: int, rows: Tensor) -> Tensor:
        """Return the winners, each once, of which there is no image of this opponent [m]."""
        return torch.tensor(
            [row for row in dict.fromkeys(rows.tolist()) if (opponent, row) not in self._known],
            dtype=torch.long,
        )

    def keep(self, opponent: int, rows: Tensor, latents: Tensor, step: int) -> None:
        """Keep what was drawn at a step.

        Args:
            opponent: The checkpoint.
            rows: The winners [m].
            latents: Its images for their prompts [m, ...].
            step: Steps done.
        """
        self._remember(opponent, rows, latents)
        if self.folder is not None:
            parts = {"opponent": torch.tensor(opponent), "rows": rows, "latents": latents.contiguous()}
            atomic_write(self.folder / f"{step:07d}-{self.rank}.safetensors", save(parts))

    def of(self, opponent: int, rows: Tensor) -> Tensor:
        """Return the latents of winners that are all there [n, ...]."""
        return torch.stack([self._known[opponent, row] for row in rows.tolist()])

    def _remember(self, opponent: int, rows: Tensor, latents: Tensor) -> None:
        for row, own in zip(rows.tolist(), latents, strict=True):
            self._known[opponent, row] = own
