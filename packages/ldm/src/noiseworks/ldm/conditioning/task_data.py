"""Images with their conditions: the testbed's scenes, arrays, and folders with `metadata.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.arrays import read_arrays
from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed
from noiseworks.core.output import read_text
from noiseworks.kits.training import TensorTable
from noiseworks.ldm.data import ImageFolder, load_images, to_tensor
from noiseworks.ldm.options import SHAPES, Images
from torch import Tensor
from torch.utils.data import Dataset

COLUMNS = {"class": "label", "text": "caption", "layout": "layout", "semantic": "segmentation"}


@dataclass(frozen=True)
class TaskData:
    """A data set of one task.

    Attributes:
        images: Rows with `image`, `[3, H, W]` in [-1, 1].
        column: The condition of every row: labels, captions, layouts or maps of classes; None when the task
            has none beside the image itself.
        num_classes: Classes of labels, layouts or maps; 0 for other tasks.
    """

    images: Dataset
    column: Sequence[Any] | np.ndarray | None = None
    num_classes: int = 0


class WithColumns(Dataset):
    """A dataset whose rows carry further tensors.

    Args:
        images: Reads whole batches (`__getitems__`).
        columns: Name -> tensor with one row per image.
    """

    def __init__(self, images: Dataset, columns: Mapping[str, Tensor]) -> None:
        for name, column in columns.items():
            if len(column) != len(images):
                raise InputError(f"{name} has {len(column)} rows, the images are {len(images)}")
        self.images, self.columns = images, dict(columns)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.images[index] | {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        return self.images.__getitems__(indices) | {
            name: column[rows] for name, column in self.columns.items()
        }


def load_task_data(task: str, given: Images) -> TaskData:
    """Return the data of a task.

    Args:
        task: Of `noiseworks.ldm.diffusion.recipes.TASKS`.
        given: Names them: `"shapes"` (the testbed's scenes, 32 px); an `.npz` with `images` `[N, H, W, 3]` and the
            task's array: `label` int `[N]`, `caption` strings `[N]`, `layout` float `[N, K, 5]` of (class, x0, y0, x1,
            y1) with class -1 where there is no object, or `segmentation` int `[N, H, W]`; or a folder of images,
            with a `metadata.jsonl` of lines such as {"file_name": "a.png", "text": "...", "label": 3}.

    Raises:
        InputError: When the task's condition is missing or does not fit.
    """
    column, data = COLUMNS.get(task.removesuffix("-large")), given.data
    if data == SHAPES:
        return scene_data(task, testbed("shapes", needs="ldm").sample_scenes(given.scenes, seed=0))
    images = load_images(given)
    if column is None:
        return TaskData(images)
    if isinstance(images, ImageFolder):
        return _with_metadata(images, Path(data), column)
    if Path(data).suffix != ".npz":
        raise InputError(f"task {task!r} needs an .npz with the array {column!r} beside images, got {data}")
    arrays = read_arrays(data)
    if column not in arrays:
        raise InputError(
            f"task {task!r} needs an .npz with the array {column!r} beside images; {data} has {', '.join(arrays)}"
        )
    values = arrays[column]
    if len(values) != len(images):
        raise InputError(f"{column} of {data} has {len(values)} rows, the images are {len(images)}")
    if column == "layout":
        values = [[(int(c), *map(float, box)) for c, *box in row if c >= 0] for row in values]
        return TaskData(images, values, 1 + max((c for row in values for c, *_ in row), default=0))
    return TaskData(images, values, 0 if column == "caption" else int(values.max()) + 1)


def _with_metadata(images: ImageFolder, folder: Path, column: str) -> TaskData:
    path = folder / "metadata.jsonl"
    key = {"caption": "text", "label": "label"}.get(column)
    if key is None or not path.is_file():
        raise InputError(f"a folder gives captions and labels by {path}; give layouts and maps as an .npz")
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            found[folder / row["file_name"]] = row[key]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"line {number} of {path} is no JSON object with file_name and {key}") from error
    missing = [file for file in images.files if file not in found]
    if missing:
        raise InputError(f"{path} has no line for {missing[0].relative_to(folder)}")
    values = [found[file] for file in images.files]
    return TaskData(images, values, 0 if key == "text" else int(max(values)) + 1)


def scene_data(task: str, drawn: Sequence[Any]) -> TaskData:
    """Return scenes of the testbed `shapes` as data of a task.

    A class is a pair of shape and colour: a label is that of a scene's first object, a layout holds the box of
    every object, and maps have class 0 for the background and 1 + the pair elsewhere.

    Args:
        task: Of `noiseworks.ldm.diffusion.recipes.TASKS`.
        drawn: Scenes of `noiseworks.bench.testbeds.shapes.sample_scenes`.
    """
    shapes, column = testbed("shapes", needs="ldm"), COLUMNS.get(task.removesuffix("-large"))
    from noiseworks.bench.testbeds.shapes import scenes as parts

    images = TensorTable({"image": to_tensor(shapes.render(drawn))})
    kinds = [(shape, color) for shape in parts.SHAPES for color in parts.COLORS]
    if column is None:
        return TaskData(images)
    if column == "caption":
        return TaskData(images, [shapes.caption(scene) for scene in drawn])
    classes = [[kinds.index((item.shape, item.color)) for item in scene.objects] for scene in drawn]
    if column == "label":
        return TaskData(images, np.array([row[0] for row in classes]), len(kinds))
    side = parts.IMAGE_SIZE
    if column == "layout":
        layouts = [
            [(kind, *box_of(item, side)) for kind, item in zip(row, scene.objects, strict=True)]
            for row, scene in zip(classes, drawn, strict=True)
        ]
        return TaskData(images, layouts, len(kinds))
    maps = np.zeros((len(drawn), side, side), np.int64)  # class 0 is the background
    for index, (row, scene) in enumerate(zip(classes, drawn, strict=True)):
        for kind, item in zip(row, scene.objects, strict=True):
            place = [np.array([getattr(item, name)]) for name in ("x", "y", "radius")]
            maps[index][parts.coverage(item.shape, *place)[0] > 0.5] = kind + 1
    return TaskData(images, maps, len(kinds) + 1)


def box_of(item: Any, side: int) -> tuple[float, float, float, float]:
    """Return the box (x0, y0, x1, y1) in [0, 1] around an object with x, y and radius in pixels."""
    ends = (item.x - item.radius, item.y - item.radius, item.x + item.radius, item.y + item.radius)
    return tuple(min(max(end / side, 0.0), 1.0) for end in ends)
