"""Choices on disk: which image of a prompt somebody preferred to which, and their latents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.core.output import read_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

NAME = "choices.jsonl"
KEYS = ("prompt", "winner", "loser", "user")


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        prompt: What was asked for.
        winner: File of the image that was preferred, or that is good.
        loser: File of the other one.
        user: Who chose.
    """

    prompt: str
    winner: Path
    loser: Path | None = None
    user: str | None = None


def read_choices(path: str | Path, needs: Sequence[str] = ("loser",)) -> list[Choice]:
    """Read choices, one JSON object a line with the keys prompt, winner, loser and user.

    Images are looked for beside the file. Nothing heavy is imported, and no image is opened.

    Args:
        path: The file, or a folder that holds `choices.jsonl`.
        needs: Which of `loser` and `user` every line must have.

    Raises:
        InputError: When there is none, or a line is none; the first line that is wrong is named.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no choices at {file}: give a file of JSON lines with {', '.join(KEYS)}")
    lines = [(i, line) for i, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no choice")
    return [_choice(line, f"{file}, line {number}", file.parent, needs) for number, line in lines]


def _choice(line: str, where: str, folder: Path, needs: Sequence[str]) -> Choice:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    keys = ("prompt", "winner", *needs)
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in keys):
        raise InputError(f"{where} needs the texts {', '.join(keys)}")
    unknown = sorted(said.keys() - set(KEYS))
    if unknown:
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; use {', '.join(KEYS)}")
    if not said["prompt"].strip():
        raise InputError(f"{where} has an empty prompt")
    files = {key: folder / said[key] for key in ("winner", "loser") if said.get(key) is not None}
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"{where}: there is no image {file} ({name})")
    if files.get("loser") == files["winner"]:
        raise InputError(f"{where} prefers {said['winner']} to itself")
    return Choice(said["prompt"].strip(), files["winner"], files.get("loser"), said.get("user"))


def encode_files(
    pipe: "DiffusionPipeline", files: Sequence[Path], size: int | None = None, batch: int = 16
) -> "Tensor":
    """Return the latents of image files as a pipeline's denoiser knows them, each file once, on the CPU [n, ...].

    They are the means of the first stage's posteriors.

    Args:
        pipe: The pipeline.
        files: The files; several may be the same.
        size: Side of the square that all are scaled and cropped to; by default they must have one size.
        batch: Images of one call.

    Raises:
        InputError: When a file is no image, or they have different sizes.
    """
    import torch
    from noiseworks.kits.diffusers_hosts import encode_images

    unique = list(dict.fromkeys(files))
    images = [load_pixels(file, size) for file in unique]
    shapes = {tuple(image.shape[1:]): file for image, file in zip(images, unique, strict=True)}
    if len(shapes) > 1:
        (first, one), (second, other), *_ = shapes.items()
        raise InputError(
            f"images of different sizes: {one} has {first[1]}x{first[0]}, {other} {second[1]}x{second[0]}; give size"
        )
    place = {file: number for number, file in enumerate(unique)}
    latents = torch.cat([encode_images(pipe, part) for part in torch.stack(images).split(batch)])
    return latents[[place[file] for file in files]]


def load_pixels(file: Path, size: int | None = None) -> "Tensor":
    """Return an image file, float32 [3, H, W] in [0, 1].

    Args:
        file: The file.
        size: Side of the square that it is scaled and cropped to.

    Raises:
        InputError: When it is no image.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file} is no image: {error}") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
