"""Tables of certificates, in the columns of the published ones, and what is read off them."""

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from noiseworks.core.artifacts import check_writable, read_json
from noiseworks.core.errors import InputError
from noiseworks.core.output import write_json
from noiseworks.kits.pictures import BLUE, FRAME, INK, Canvas
from noiseworks.rrcm.smoothing import ABSTAIN, SmoothedClassifier
from torch import Tensor

COLORS = (BLUE, (194, 87, 26), (44, 138, 87), (138, 79, 176), INK)
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


@dataclass(frozen=True)
class Table:
    """Certificates of images.

    Attributes:
        radii: (n,), 0 where it abstained.
        correct: Whether the certified class is the label, bool (n,).
    """

    radii: np.ndarray
    correct: np.ndarray

    def accuracy(self, radius: float) -> float:
        """Return the share of images that are right with at least this radius."""
        return float((self.correct & (self.radii >= radius)).mean())

    def average_radius(self) -> float:
        """Return the mean radius, with 0 for images that are wrong."""
        return float((self.radii * self.correct).mean())


def with_confidence(share: float, count: int, alpha: float, rho: float = 0.001) -> float:
    """Return an accuracy that holds with probability 1 - ρ although each certificate may fail with α.

    It is lower by α + √(α (1 - α) ln(1/ρ) / M) + ln(1/ρ) / (3 M) (Cohen et al. 2019, appendix).

    Args:
        share: Certified accuracy over M images.
        count: M.
        alpha: Of each certificate.
        rho: ρ.
    """
    rare = math.log(1 / rho)
    return share - alpha - math.sqrt(alpha * (1 - alpha) * rare / count) - rare / (3 * count)


def evenly(total: int, most: int | None) -> list[int]:
    """Return at most `most` numbers below `total` at even distances, so that sorted classes are all met."""
    if most is None or most >= total:
        return list(range(total))
    return [index * total // most for index in range(most)]


def certify_images(
    smoothed: SmoothedClassifier,
    images: Tensor,
    labels: Tensor,
    file: Path,
    *,
    chosen: Sequence[int],
    stop_if_wrong: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Certify images one by one and append each to a table; images that stand there already are left out.

    Args:
        smoothed: The classifier.
        images: (n, C, H, W) in [0, 1].
        labels: (n,).
        file: The table, tab-separated.
        chosen: Numbers of the images.
        stop_if_wrong: Whether an image whose chosen class is wrong is not drawn further: accuracies stay as they are,
            its radius is 0.
        progress: Called with what is done and the whole.

    Raises:
        InputError: When the file is no such table.
    """
    known = {int(row["idx"]) for row in rows_of(file)} if file.exists() else set()
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        if stream.tell() == 0:
            writer.writerow(COLUMNS)
        for done, index in enumerate(chosen):
            if index not in known:
                start, label = time.perf_counter(), int(labels[index])
                one, ids = images[index : index + 1], [index]
                first = smoothed.choose(one, ids)
                found, radius = int(first), 0.0
                if found == label or not stop_if_wrong:
                    certificate = smoothed.certify(one, ids, first)[0]
                    found, radius = certificate.label, certificate.radius
                seconds = time.perf_counter() - start
                writer.writerow((index, label, found, f"{radius:.6g}", int(found == label), f"{seconds:.4f}"))
                stream.flush()
            progress(done + 1, len(chosen))
    return read_table(file)


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the whole rows of a table; a row that a stop cut off is dropped from the file.

    Raises:
        InputError: When the file is no such table.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"no table {file}: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(whole.splitlines(), delimiter="\t"))
    if not whole.startswith("\t".join(COLUMNS)) or any(None in row.values() for row in rows):
        raise InputError(f"{file} is no table of certificates with the columns {' '.join(COLUMNS)}")
    if whole != text:
        file.write_text(whole)
    return rows


def read_table(file: Path) -> Table:
    """Read a table.

    Raises:
        InputError: When the file is missing, no such table, or empty.
    """
    rows = rows_of(file)
    if not rows:
        raise InputError(f"{file} holds no certificate yet")
    try:
        radii = np.array([float(row["radius"]) for row in rows])
        correct = np.array([row["correct"] == "1" and int(row["predict"]) != ABSTAIN for row in rows])
    except ValueError as error:
        raise InputError(f"{file} is no table of certificates: {error}") from error
    return Table(radii, correct)


def open_table(out: Path, settings: dict[str, Any]) -> Path:
    """Return the table of a folder, new or of the same certification, which then goes on.

    Args:
        out: The folder.
        settings: What the certification is, plain values.

    Raises:
        InputError: When the folder holds something else, or a certification with other settings.
    """
    check_writable(out)
    record = out / "settings.json"
    if record.is_file():
        known = read_json(record, "settings")
        other = sorted(key for key in settings | known if known.get(key) != settings.get(key))
        if other:
            raise InputError(
                f"{out} holds a certification with other settings ({', '.join(other)}); name another folder"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds something else than a certification; name another folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(record, settings)
    return out / "table.tsv"


def plot(tables: dict[str, Table], radii: Sequence[float], picture: Path) -> None:
    """Draw certified accuracy over the radius, a line a table."""
    canvas, (left, top, width, height) = Canvas(460, 260), (40, 12, 280, 210)
    for tick in range(0, 101, 25):
        y = top + height * (1 - tick / 100)
        canvas.line([(left, y), (left + width, y)], FRAME)
        canvas.word(6, y - 6, f"{tick} %", FRAME)
    most = max(radii) or 1.0
    for tick in range(5):
        canvas.word(left + width * tick / 4 - 8, top + height + 6, f"{most * tick / 4:.2g}", FRAME)
    for place, (name, table) in enumerate(tables.items()):
        color = COLORS[place % len(COLORS)]
        steps = [most * step / 200 for step in range(201)]
        canvas.line([(left + width * r / most, top + height * (1 - table.accuracy(r))) for r in steps], color)
        canvas.word(left + width + 10, top + 14 * place, name, color)
    canvas.write(picture)
