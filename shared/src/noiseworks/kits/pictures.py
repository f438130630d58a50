"""Pictures of results: heat maps and curves on a canvas, captioned grids of images, and films of episodes.

A canvas is written as SVG, PNG or WebP, whole or not at all. Arrays of pictures are uint8 [..., H, W, 3].
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.output import check_file
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from torch import Tensor

Color = tuple[int, int, int]
SUFFIXES = (".svg", ".png", ".webp")
BLUE, RED, INK, FRAME, ABSENT = (31, 93, 170), (178, 24, 43), (50, 50, 50), (90, 90, 90), (200, 200, 200)
JOINED = 1e-6  # of a pixel, between boxes that touch
LINE_HEIGHT, LETTER = 14, 6  # of Pillow's own font, in pixels


def shade(share: float, full: Color = BLUE) -> Color:
    """Return the colour of a share: white for 0, `full` for 1, grey for NaN (nothing was measured)."""
    if math.isnan(share):
        return ABSENT
    share = min(max(share, 0.0), 1.0)
    return tuple(round(255 + share * (end - 255)) for end in full)


class Canvas:
    """Boxes, lines and words that are drawn in any of the formats.

    Args:
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._boxes: list[tuple[float, float, float, float, Color]] = []
        self._lines: list[tuple[list[tuple[float, float]], Color]] = []
        self._words: list[tuple[float, float, str, Color]] = []

    def box(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """Fill a box whose upper left corner is at (x, y)."""
        self._boxes.append((x, y, width, height, color))

    def line(self, points: Sequence[tuple[float, float]], color: Color = BLUE) -> None:
        """Draw a line through points; of fewer than two nothing is seen."""
        if len(points) > 1:
            self._lines.append((list(points), color))

    def word(self, x: float, y: float, text: str, color: Color = INK) -> None:
        """Write a line of text below (x, y)."""
        self._words.append((x, y, text, color))

    def heat_map(
        self,
        values: "np.ndarray | Tensor | Sequence[Sequence[float]]",
        corner: tuple[float, float],
        cell: tuple[float, float],
        *,
        color: Callable[[float], Color] = shade,
        names: Sequence[str] = (),
        gap: float = 0,
    ) -> None:
        """Draw a table as coloured cells.

        Args:
            values: Rows of columns.
            corner: Upper left corner.
            cell: Width and height of a cell.
            color: Value -> colour; by default of shares from 0 to 1.
            names: One a row, written to its left.
            gap: White pixels after each row.
        """
        left, top = corner
        longest = max(map(len, names), default=0)
        for index, name in enumerate(names):
            self.word(left - LETTER * longest - 6, top + index * cell[1], name, FRAME)
        for y, row in enumerate(np.asarray(values).tolist()):
            for x, value in enumerate(row):
                place = (left + x * cell[0], top + y * cell[1])
                self.box(*place, cell[0], cell[1] - gap, color(value))

    def write(self, path: str | Path) -> Path:
        """Write the picture, atomically.

        Args:
            path: A file that ends in .svg, .png or .webp.

        Raises:
            InputError: When it ends otherwise or cannot be written.
        """
        path = check_file(path, SUFFIXES)
        if path.suffix == ".svg":
            atomic_write(path, self._svg())
        else:
            write_picture(self._image(), path)
        return path

    def _image(self) -> Image.Image:
        image = Image.new("RGB", self.size, "white")
        draw = ImageDraw.Draw(image)
        for x, y, width, height, color in self._boxes:
            draw.rectangle([x, y, x + max(width - 1, 0), y + max(height - 1, 0)], fill=color)
        for points, color in self._lines:
            draw.line(points, fill=color)
        for x, y, text, color in self._words:
            draw.text((x, y), text, fill=color)
        return image

    def _joined(self) -> list[tuple[float, float, float, float, Color]]:
        """Return the boxes, those that continue the one before in its row and colour as one with it.

        A map of a thousand by a thousand cells would otherwise be a file of megabytes.
        """
        joined: list[tuple[float, float, float, float, Color]] = []
        for x, y, width, height, color in self._boxes:
            if joined:
                left, top, before, tall, shown = joined[-1]
                if (top, tall, shown) == (y, height, color) and abs(left + before - x) < JOINED:
                    joined[-1] = (left, top, x + width - left, tall, shown)
                    continue
            joined.append((x, y, width, height, color))
        return joined

    def _svg(self) -> str:
        width, height = self.size
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
            'font-size="10">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]
        parts += [
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{_hex(color)}" '
            'shape-rendering="crispEdges"/>'
            for x, y, w, h, color in self._joined()
        ]
        for points, color in self._lines:
            path = " ".join(f"{x:g},{y:g}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{_hex(color)}"/>')
        parts += [
            f'<text x="{x:g}" y="{y + 9:g}" fill="{_hex(color)}">{escape(text)}</text>'
            for x, y, text, color in self._words
        ]
        return "\n".join([*parts, "</svg>\n"])


PALETTE: Sequence[Color] = (
    BLUE,
    RED,
    (51, 137, 67),
    (214, 128, 33),
    (117, 82, 160),
    (64, 158, 170),
    (120, 120, 120),
)


def line_plot(
    path: str | Path,
    series: "Mapping[str, tuple[Sequence[float], Sequence[float]]]",
    axes: tuple[str, str],
    *,
    log: tuple[bool, bool] = (False, False),
) -> Path:
    """Draw curves with two labelled axes and a legend.

    Args:
        path: A file that ends in .svg, .png or .webp.
        series: Name -> (x, y); points that are not finite, or have no logarithm where one is asked for, are left out.
        axes: Labels of x and y.
        log: Whether x, and y, are on a logarithmic scale.

    Raises:
        InputError: When the file ends otherwise or cannot be written.
    """
    left, top, width, height = 70, 20, 420, 260
    curves = {name: _placed(x, y, log) for name, (x, y) in series.items()}
    points = [point for curve in curves.values() for point in curve] or [(0.0, 0.0)]
    lows = [min(point[side] for point in points) for side in (0, 1)]
    highs = [max(point[side] for point in points) for side in (0, 1)]
    spans = [high - low or 1.0 for low, high in zip(lows, highs, strict=True)]
    canvas = Canvas(left + width + 230, top + height + 50)
    corners = [(left, top), (left, top + height), (left + width, top + height)]
    canvas.line(corners, FRAME)
    for part in range(5):
        shown = [
            f"{10**value if logarithmic else value:.3g}"
            for value, logarithmic in zip(
                (low + span * part / 4 for low, span in zip(lows, spans, strict=True)), log, strict=True
            )
        ]
        canvas.word(left + width * part / 4 - 10, top + height + 6, shown[0], FRAME)
        canvas.word(left - LETTER * len(shown[1]) - 8, top + height * (1 - part / 4) - 6, shown[1], FRAME)
    canvas.word(left + width / 2 - LETTER * len(axes[0]) / 2, top + height + 26, axes[0])
    canvas.word(4, 2, axes[1])
    for index, (name, curve) in enumerate(curves.items()):
        color = PALETTE[index % len(PALETTE)]
        place = [
            (left + width * (x - lows[0]) / spans[0], top + height * (1 - (y - lows[1]) / spans[1]))
            for x, y in curve
        ]
        canvas.line(place, color)
        for x, y in place if len(place) <= 24 else ():
            canvas.box(x - 2, y - 2, 4, 4, color)
        canvas.box(left + width + 12, top + 6 + LINE_HEIGHT * index, 8, 8, color)
        canvas.word(left + width + 26, top + 4 + LINE_HEIGHT * index, name)
    return canvas.write(path)


def _placed(x: Sequence[float], y: Sequence[float], log: tuple[bool, bool]) -> list[tuple[float, float]]:
    """Return the points of a curve in the units of the plot."""
    found = []
    for pair in zip(x, y, strict=True):
        if all(
            math.isfinite(value) and (value > 0 or not side) for value, side in zip(pair, log, strict=True)
        ):
            found.append(
                tuple(math.log10(value) if side else value for value, side in zip(pair, log, strict=True))
            )
    return found


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def write_picture(picture: "Image.Image | np.ndarray", path: str | Path) -> Path:
    """Write a picture without loss, atomically.

    Args:
        picture: A Pillow image, or uint8 [H, W, 3].
        path: A file that ends in .png or .webp.

    Raises:
        InputError: When it ends otherwise or cannot be written.
    """
    path = check_file(path, SUFFIXES[1:])
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    if path.suffix == ".png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "WEBP", lossless=True)
    atomic_write(path, buffer.getvalue())
    return path


def to_pixels(images: "Tensor") -> np.ndarray:
    """Return images [n, 3, H, W] in [0, 1] as uint8 [n, H, W, 3]; what lies outside is clipped."""
    return images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(rows: Mapping[str, np.ndarray], *, captions: Sequence[str] = (), scale: int = 1) -> np.ndarray:
    """Return images in aligned rows and columns, each row behind its name, as one picture uint8 [H, W, 3].

    Args:
        rows: Name -> uint8 [n, H, W, 3], all of one size; shorter rows are filled up with white. Rows whose name is
            empty have none.
        captions: One a column, above it.
        scale: How often a pixel is repeated.
    """
    columns = max(map(len, rows.values()))
    lines = [strip(images, columns=columns, scale=scale) for images in rows.values()]
    left = max(map(len, rows)) * LETTER + 8 if any(rows) else 0
    top = LINE_HEIGHT if captions else 0
    height, width = lines[0].shape[:2]
    image = Image.new("RGB", (left + width, top + height * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for index, (name, line) in enumerate(zip(rows, lines, strict=True)):
        image.paste(Image.fromarray(line), (left, top + index * height))
        draw.text((4, top + index * height + height // 2 - 6), name, fill=INK)
    for index, caption in enumerate(captions):
        draw.text((left + index * width // columns + 3, 1), caption, fill=INK)
    return np.asarray(image)


def strip(images: np.ndarray, *, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Return images uint8 [n, H, W, 3] side by side, [H, n W, 3].

    Args:
        images: The images.
        columns: Places, of which the last ones stay white; by default n.
        scale: How often a pixel is repeated.
    """
    images = np.asarray(images)
    missing = (columns or len(images)) - len(images)
    white = np.full((missing, *images.shape[1:]), 255, images.dtype)
    row = np.concatenate([*images, *white], axis=1)
    return row.repeat(scale, axis=0).repeat(scale, axis=1)


def film(episodes: Sequence[np.ndarray], *, columns: int = 4, scale: int = 1) -> list[np.ndarray]:
    """Return frames that show episodes side by side; one that is over keeps its last picture.

    Args:
        episodes: Per episode uint8 [S_i, H, W, 3].
        columns: Episodes in a row.
        scale: How often a pixel is repeated.
    """
    columns = min(columns, len(episodes))
    parts = [episodes[i : i + columns] for i in range(0, len(episodes), columns)]
    return [
        np.concatenate(
            [
                strip(np.stack([e[min(step, len(e) - 1)] for e in part]), columns=columns, scale=scale)
                for part in parts
            ]
        )
        for step in range(max(map(len, episodes)))
    ]
