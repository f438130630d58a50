"""Images from a trained pipeline, as files: what a condition becomes in a batch, and what is written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.artifacts import FolderKind
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.options import Place
from noiseworks.core.output import lines_of, plain, read_text, results
from noiseworks.ldm.conditioning.conditioners import ClassConditioner, LayoutConditioner, TextConditioner
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
from noiseworks.ldm.conversion.pipelines import keep_pixels, load_model
from noiseworks.ldm.data import to_tensor, to_uint8
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.options import Asked, SampleSettings, said
from PIL import Image, UnidentifiedImageError
from torch import Tensor

Batch = dict[str, Tensor]


def draw_into(out: Path, kind: FolderKind, record: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Draw what `record` asks for into a folder that appears whole; see the command `sample`."""
    loaded = load_model(record["model"])
    device = place.torch_device()
    conditioner = None if loaded.conditioner is None else loaded.conditioner.to(device).eval()
    loaded = replace(
        loaded, unet=loaded.unet.to(device).eval(), vae=loaded.vae.to(device).eval(), conditioner=conditioner
    )
    batch, sides = condition_of(loaded, record["asked"])
    images = draw(loaded, batch, sides, record["num"], record["settings"])
    check_finite("images", images)
    names = [f"{index:05d}.png" for index in range(len(images))]
    with results(out, kind, plain(record)) as folder:
        for name, pixels in zip(names, to_uint8(images), strict=True):
            Image.fromarray(pixels).save(folder / name)
    return {"images": [str(out / name) for name in names]}


def draw(
    model: LatentModel, batch: Batch, sides: tuple[int, int] | None, num: int, settings: SampleSettings
) -> Tensor:
    """Return `num` images of every row of a batch of conditions, `[B num, 3, H, W]` in [-1, 1].

    Args:
        model: The model.
        batch: What `condition_of` returned; empty for an unconditional model.
        sides: Height and width in pixels that the condition asks for, or None.
        num: Images of each row.
        settings: The sampler; its own height and width come first.
    """
    many = {name: rows.repeat_interleave(num, dim=0) for name, rows in batch.items()} or None
    if sides is not None:
        settings = replace(settings, height=settings.height or sides[0], width=settings.width or sides[1])
    images = sample(model, many, settings, num_samples=None if many else num).images
    return images if many is None or "mask" not in many else keep_pixels(images, many["image"], many["mask"])


def condition_of(model: LatentModel, asked: Asked) -> tuple[Batch, tuple[int, int] | None]:
    """Return a batch of the conditions that are asked for, and the size that they ask for in pixels, or None.

    Raises:
        InputError: When the model takes something else, or a file does not fit.
    """
    read = {
        TextConditioner: (("prompt",), _captions),
        ClassConditioner: (("label",), lambda model, asked: ({"label": torch.tensor([asked.label])}, None)),
        LayoutConditioner: (("boxes",), _boxes),
        SemanticConditioner: (("segmentation",), _classes),
        LowResConditioner: (("image",), _small),
        MaskConditioner: (("image", "mask"), _hole),
    }
    nothing: tuple[tuple[str, ...], Callable] = ((), lambda model, asked: ({}, None))
    wanted, reader = read.get(type(model.conditioner), nothing)
    if asked.given != wanted:
        raise InputError(f"the model takes {said(wanted)}, got {said(asked.given)}")
    return reader(model, asked)


def _captions(model: LatentModel, asked: Asked) -> tuple[Batch, None]:
    return {"input_ids": model.conditioner.tokenize(lines_of(asked.prompt))}, None


def _boxes(model: LatentModel, asked: Asked) -> tuple[Batch, None]:
    try:
        objects = [(int(kind), *map(float, corners)) for kind, *corners in json.loads(read_text(asked.boxes))]
    except (ValueError, TypeError) as error:
        raise InputError(f"{asked.boxes} is no JSON list of [class, x0, y0, x1, y1] ({error})") from error
    return {"layout_ids": model.conditioner.tokenize([objects])}, None


def _classes(model: LatentModel, asked: Asked) -> tuple[Batch, tuple[int, int]]:
    pixels = np.asarray(_open(asked.segmentation, ("L", "P", "I", "I;16"))).astype(np.int64)
    return {"segmentation": torch.from_numpy(pixels)[None]}, pixels.shape


def _small(model: LatentModel, asked: Asked) -> tuple[Batch, tuple[int, int]]:
    pixels = read_image(asked.image)
    return {"low_res": pixels}, tuple(side * model.factor for side in pixels.shape[-2:])


def _hole(model: LatentModel, asked: Asked) -> tuple[Batch, tuple[int, int]]:
    pixels, hole = read_image(asked.image), read_mask(asked.mask)
    if pixels.shape[-2:] != hole.shape[-2:]:
        raise InputError(f"image {tuple(pixels.shape[-2:])} and mask {tuple(hole.shape[-2:])} differ in size")
    return {"image": pixels, "mask": hole}, tuple(pixels.shape[-2:])


def read_image(path: Path) -> Tensor:
    """Return an RGB image file as `[1, 3, H, W]` in [-1, 1].

    Raises:
        InputError: When the file is no image, or grayscale.
    """
    return to_tensor(np.array(_open(path, ("RGB", "RGBA", "P")).convert("RGB"))[None])


def read_mask(path: Path) -> Tensor:
    """Return a single-channel image file as a mask `[1, 1, H, W]` in [0, 1].

    Raises:
        InputError: When the file is no image, or has several channels.
    """
    values = np.asarray(_open(path, ("1", "L")).convert("L"), dtype=np.float32) / 255.0
    return torch.from_numpy(values)[None, None]


def _open(path: Path, modes: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is no readable image ({error})") from error
    if image.mode not in modes:
        raise InputError(f"{path} has mode {image.mode}, expected {' or '.join(modes)}; convert it")
    return image
