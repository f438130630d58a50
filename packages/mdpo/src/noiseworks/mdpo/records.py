"""What a run keeps on disk: its figures a round, and one checkpoint, replaced atomically."""

import csv
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import ArtifactError

COLUMNS = (
    "update",
    "loss",
    "reward",
    "over_denoised_rollouts",
    "kl",
    "ratio",
    "clipped",
    "grad_norm",
    "learning_rate",
    "micro_batches",
    "accuracy",
    "over_denoised",
)


class MetricsFile:
    """`metrics.csv`: one row a round. A resumed run drops the rows after its checkpoint.

    Args:
        path: The file, or None to keep nothing.
        update: Rounds that are already done.
    """

    def __init__(self, path: Path | None, update: int) -> None:
        self.path, self.rows = path, []
        if path is not None and update and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["update"]) <= update]

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; the file is replaced as a whole, so that it is never half a line."""
        if self.path is None:
            return
        self.rows.append({name: row.get(name, "") for name in COLUMNS})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, text.getvalue())


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values beside `path` and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; no pickled code is run.

    Raises:
        ArtifactError: When the file is corrupt or no checkpoint.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"the checkpoint {path} cannot be read ({error}); begin the run anew") from error
