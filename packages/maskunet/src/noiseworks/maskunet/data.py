"""A user's images with their texts, as latents that masks are trained on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.output import read_text
from noiseworks.maskunet.options import Pictures
from noiseworks.maskunet.training import Examples, encode_images
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def read_metadata(folder: Path) -> list[tuple[Path, str]]:
    """Return the images of a folder and their texts.

    Raises:
        InputError: When `metadata.jsonl` is missing or a line of it names no image or no text.
    """
    path, found = folder / "metadata.jsonl", []
    if not path.is_file():
        raise InputError(f"{folder} has no metadata.jsonl with lines of file_name and text")
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            file, text = folder / row["file_name"], str(row["text"]).strip()
        except (ValueError, KeyError, TypeError):
            raise InputError(f"line {number} of {path} is no JSON object with file_name and text") from None
        if not file.is_file() or not text:
            raise InputError(f"line {number} of {path} names no image or no text: {row}")
        found.append((file, text))
    if not found:
        raise InputError(f"{path} is empty")
    return found


def read_image(file: Path, size: int) -> Tensor:
    """Return an image [3, size, size] in [0, 1]: its shorter side scaled to the size, and cut from the middle.

    Raises:
        InputError: When it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise InputError(f"{file} is no image that can be read: {error}") from None
    scale = size / min(image.size)
    image = image.resize([max(size, round(edge * scale)) for edge in image.size], Image.Resampling.BICUBIC)
    left, top = ((edge - size) // 2 for edge in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def load_examples(pipe: "DiffusionPipeline", pictures: Pictures, flip: bool) -> Examples:
    """Encode a folder's images.

    Args:
        pipe: The pipeline.
        pictures: The folder.
        flip: Whether flipped images are encoded as well.
    """
    entries, config = read_metadata(pictures.data), pipe.vae.config
    size = pictures.size or config.sample_size
    prompts = tuple(dict.fromkeys(text for _, text in entries))
    ids = torch.tensor([prompts.index(text) for _, text in entries])
    images = [read_image(file, size) for file, _ in entries]
    latents = torch.cat([encode_images(pipe, image[None]) for image in images])
    flipped = torch.cat([encode_images(pipe, image.flip(-1)[None]) for image in images]) if flip else None
    return Examples(latents, ids, prompts, flipped)
