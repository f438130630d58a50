"""Labels: which numbers people gave to the images of `sample`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import read_json
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.output import read_text
from noiseworks.d3po.answers import SUFFIX, load_answers

if TYPE_CHECKING:
    from torch import Tensor


def read_samples(file: Path, images: bool = False) -> tuple[list[str], int]:
    """Return the prompts of what `sample` drew, and the images of each.

    Args:
        file: Its `samples.json`.
        images: Whether the images beside it are needed.

    Raises:
        ArtifactError: When the file does not say so, or an image is missing.
    """
    said = read_json(file, "folder of sample")
    prompts, copies = said.get("prompts"), said.get("copies")
    texts = isinstance(prompts, list) and all(isinstance(one, str) and one.strip() for one in prompts)
    if not prompts or not texts or type(copies) is not int or copies < 2:
        raise ArtifactError(
            f"{file} is corrupt: it names no prompts or no number of copies; draw the samples anew"
        )
    files = [file.parent / f"{number:05d}.png" for number in range(len(prompts) * copies if images else 0)]
    for one in files:
        if not one.is_file():
            raise ArtifactError(f"the image {one} is missing; draw the samples anew")
    return prompts, copies


def read_labels(path: str | Path, prompts: int, copies: int) -> list[list[list[float]]]:
    """Return the label files of a path: a file, or a folder of one file a person.

    A file is a JSON list of `prompts` lists of `copies` numbers, larger for better images, or what `label` wrote.

    Args:
        path: The file or folder.
        prompts: Number of prompts.
        copies: Images of a prompt.

    Returns:
        One list of lists a file.

    Raises:
        InputError: When there is none, or one is no such list; the first place that is wrong is named.
    """
    path = Path(path)
    files = sorted((*path.glob("*.json"), *path.glob(f"*{SUFFIX}"))) if path.is_dir() else [path]
    if not files or not path.exists():
        raise InputError(f"no labels at {path}: name a JSON file, or a folder of such files")
    return [
        _clicked(file, prompts, copies) if file.suffix == SUFFIX else _checked(file, prompts, copies)
        for file in files
    ]


def _clicked(file: Path, prompts: int, copies: int) -> list[list[float]]:
    found = load_answers(file)
    if (found.prompts, found.copies) != (prompts, copies):
        raise InputError(
            f"the answers {file} are about {found.prompts} prompts of {found.copies} images, not {prompts} of {copies}"
        )
    return found.labels()


def _checked(file: Path, prompts: int, copies: int) -> list[list[float]]:
    try:
        found: Any = json.loads(read_text(file))
    except ValueError as error:
        raise InputError(f"the labels {file} are no JSON: {error}") from None
    if not isinstance(found, list) or len(found) != prompts:
        count = len(found) if isinstance(found, list) else "no"
        raise InputError(
            f"the labels {file} hold {count} lists for {prompts} prompts: give one list a prompt"
        )
    for number, row in enumerate(found):
        good = isinstance(row, list) and len(row) == copies
        if not good or not all(
            isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in row
        ):
            raise InputError(f"the labels {file} have {row!r} for prompt {number}: give {copies} numbers")
    return found


def merged(labels: Sequence[list[list[float]]]) -> "Tensor":
    """Return the mean over people, float32 [prompts, K]."""
    import torch

    return torch.tensor(labels, dtype=torch.float32).mean(0)


def agreement(labels: Sequence[list[list[float]]]) -> float | None:
    """Return how often two people who both prefer one image of a pair prefer the same one; None where none do."""
    import torch
    from noiseworks.d3po.objective import pair_preferences

    h = torch.stack([pair_preferences(torch.tensor(one, dtype=torch.float32)[..., None]) for one in labels])
    products = [(h[i] * h[j]) for i in range(len(h)) for j in range(i)]
    decided = torch.cat([product[product != 0] for product in products]) if products else torch.empty(0)
    return float((decided > 0).float().mean()) if len(decided) else None
