"""What a run measures: `metrics.csv` and TensorBoard, without a row twice however often the run is stopped."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from noiseworks.core.artifacts import atomic_write
from noiseworks.kits.training.folder import METRICS_NAME

TENSORBOARD_NAME = "tensorboard"


class MetricsFile:
    """One row a step, one column a figure, in a run's `metrics.csv` and as scalars for TensorBoard.

    Opened at step n the file loses the rows behind n, so that a run that was killed after its last checkpoint and went
    on ends with the file of one that was never stopped.

    Args:
        folder: The run's folder.
        step: Steps that are already done.
        tensorboard: Whether to write for TensorBoard as well.
    """

    def __init__(self, folder: str | Path, step: int = 0, *, tensorboard: bool = True) -> None:
        self.path = Path(folder) / METRICS_NAME
        self._columns = ["step"]
        self._pending: dict[str, str] = {}
        self._on_disk: str | None = None  # the step of the file's last row
        self._restore(step)
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Events from `purge_step` on that an earlier process left are not shown.
            self._events = SummaryWriter(str(Path(folder) / TENSORBOARD_NAME), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step; a step that has a row already gets them in that row.

        Args:
            step: Steps done; not below an earlier call's.
            figures: Name -> value.
        """
        values = {name: repr(float(value)) for name, value in figures.items()}
        if self._pending.get("step") != str(step):
            self._append()
        self._pending |= {"step": str(step), **values}
        for name, value in figures.items():
            if self._events is not None:
                self._events.add_scalar(name, float(value), step)

    def flush(self) -> None:
        """Bring everything to disk; call it before a checkpoint, so that the file is never behind."""
        self._append()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Bring everything to disk and close."""
        self.flush()
        if self._events is not None:
            self._events.close()

    def rows(self) -> list[dict[str, str]]:
        """Return the rows on disk; a line that a kill cut off does not count."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        lines = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(lines)))

    def _restore(self, step: int) -> None:
        rows = self.rows()
        kept = [row for row in rows if int(row["step"]) <= step]
        if rows:
            self._columns = list(rows[0])
        if kept and int(kept[-1]["step"]) == step:  # its validation may still be to come
            self._pending = {name: value for name, value in kept.pop().items() if value != ""}
        if self.path.is_file():
            self._rewrite(kept)

    def _append(self) -> None:
        if not self._pending:
            return
        row, self._pending = self._pending, {}
        new = [name for name in row if name not in self._columns]
        if new or row["step"] == self._on_disk or not self.path.is_file():
            self._columns += new
            self._rewrite([*self.rows(), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        self._on_disk = row["step"]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        merged: dict[str, dict[str, str]] = {}
        for row in rows:
            merged[row["step"]] = merged.get(row["step"], {}) | row
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
        atomic_write(self.path, text.getvalue())
        self._on_disk = next(reversed(merged), None)
