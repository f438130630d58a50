"""The commands `sample`, `inpaint`, `upscale`, `layout` and `semantic`: images from a trained pipeline."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import InputError
from noiseworks.core.output import read_text, results
from noiseworks.ldm.conditioning.conditioners import (
    ClassConditioner,
    Conditioner,
    LayoutConditioner,
    TextConditioner,
)
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
from noiseworks.ldm.conversion.pipelines import fill, load_model
from noiseworks.ldm.data import to_tensor, to_uint8
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.samplers import SampleSettings
from noiseworks.ldm.diffusion.sampling import Samples, sample
from noiseworks.ldm.diffusion.tiling import Tiles
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_IMAGES = FolderKind("ldm/images", ("[0-9]*.png", "config.yaml"), "config.yaml")
VERBS = {
    TextConditioner: "sample --prompt",
    ClassConditioner: "sample --label",
    LayoutConditioner: "layout",
    SemanticConditioner: "semantic",
    LowResConditioner: "upscale",
    MaskConditioner: "inpaint",
}


@Parameter(name="*")
@dataclass(frozen=True)
class SampleOptions:
    """The sampler.

    Attributes:
        sampler: ddim, plms or ddpm (all steps).
        steps: Number of steps; not read by ddpm.
        eta: Randomness of ddim, 0 to 1.
        guidance_scale: w in u + w (c - u); 1 is off.
        temperature: Factor of the noise added in every step.
        noise_dropout: Share of that noise set to zero.
        quantize_x0: Quantise the predicted latents in every step (VQ first stages).
        tile: Side of overlapping windows in latent pixels, for sizes beyond the training size.
        tile_stride: Distance of the windows; half the side by default.
        seed: Sample i of a seed is the same whatever the batch size.
        batch_size: Images at once.
        device: auto, cpu, cuda, cuda:N or mps.
        truncate: Cut captions that are longer than the text encoder's limit.
    """

    sampler: Literal["ddim", "plms", "ddpm"] = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance_scale: float = 1.0
    temperature: float = 1.0
    noise_dropout: float = 0.0
    quantize_x0: bool = False
    tile: int | None = None
    tile_stride: int | None = None
    seed: int = 0
    batch_size: int = 16
    device: str = "auto"
    truncate: bool = False

    def settings(self) -> SampleSettings:
        """Return the settings of `sample`.

        Raises:
            InputError: When a value is out of its range.
        """
        if self.tile is None and self.tile_stride is not None:
            raise InputError("tile_stride needs tile, the side of the windows")
        tiles = None if self.tile is None else Tiles(self.tile, self.tile_stride or max(1, self.tile // 2))
        return SampleSettings(
            self.sampler,
            self.steps,
            self.eta,
            self.guidance_scale,
            self.temperature,
            self.noise_dropout,
            self.quantize_x0,
            tiles,
        )


@dataclass(frozen=True)
class Written:
    """What the commands return.

    Attributes:
        images: The image files, in the order of the samples.
        rows: Files of the x0 predictions along the way, one a sample, from noise to image.
    """

    images: tuple[Path, ...]
    rows: tuple[Path, ...] = ()


def sample_images(
    model: str,
    out: Path,
    *,
    num: int = 1,
    prompt: tuple[str, ...] = (),
    label: tuple[int, ...] = (),
    height: int | None = None,
    width: int | None = None,
    progressive: int = 0,
    sampling: SampleOptions | None = None,
) -> Written:
    """Sample images from an unconditional, class-conditional or text-conditional model.

    Args:
        model: A pipeline: a directory, testbed:NAME or hub id.
        out: Folder of the images.
        num: Images per prompt or label.
        prompt: Captions, of a text-conditional model.
        label: Classes, of a class-conditional model; the number of classes itself is the null class.
        height: Of the images in pixels, by default the training size.
        width: Likewise.
        progressive: Number of x0 predictions shown along the way.
        sampling: The sampler.

    Raises:
        InputError: When the model has another condition, or an option is out of range.
    """
    check_number("num", num, low=1, integer=True)
    check_number("progressive", progressive, low=0, integer=True)
    options = sampling or SampleOptions()
    loaded = _load(model, out, options, (TextConditioner, ClassConditioner, None))
    batch: dict[str, Any] | None = None
    if isinstance(loaded.conditioner, TextConditioner):
        if not prompt or label:
            raise InputError("the model is text-conditional: give --prompt, and no --label")
        batch = {"input_ids": loaded.conditioner.tokenize([text for text in prompt for _ in range(num)])}
    elif isinstance(loaded.conditioner, ClassConditioner):
        if not label or prompt:
            raise InputError("the model is class-conditional: give --label, and no --prompt")
        batch = {"label": torch.tensor([value for value in label for _ in range(num)])}
    elif prompt or label:
        raise InputError("the model is unconditional: it takes no --prompt and no --label")
    samples = sample(
        loaded,
        batch,
        num_samples=num if batch is None else None,
        height=height,
        width=width,
        settings=options.settings(),
        seed=options.seed,
        batch_size=options.batch_size,
        progressive=progressive,
    )
    record = {"model": model, "num": num, "prompt": prompt, "label": label}
    return _write(out, samples.images, record | asdict(options), samples.rows)


def inpaint(
    model: str, image: Path, mask: Path, out: Path, *, num: int = 1, sampling: SampleOptions | None = None
) -> Written:
    """Fill the masked part of an image; the rest of the pixels stays as it is.

    Args:
        model: A pipeline of the task inpaint: a directory or hub id.
        image: An RGB image file.
        mask: A single-channel image file of the same size; white is the hole.
        out: Folder of the images.
        num: Number of fillings.
        sampling: The sampler.

    Raises:
        InputError: When the files do not fit each other or the model.
    """
    options = sampling or SampleOptions()
    check_number("num", num, low=1, integer=True)
    pixels, hole = read_image(image), read_mask(mask)
    if pixels.shape[-2:] != hole.shape[-2:]:
        raise InputError(f"image {tuple(pixels.shape[-2:])} and mask {tuple(hole.shape[-2:])} differ in size")
    loaded = _load(model, out, options, (MaskConditioner,), image, mask)
    many = (pixels.expand(num, -1, -1, -1), hole.expand(num, -1, -1, -1))
    filled = fill(loaded, *many, options.settings(), options.seed, options.batch_size)
    return _write(out, filled, {"model": model, "image": image, "mask": mask} | asdict(options))


def upscale(
    model: str, image: Path, out: Path, *, num: int = 1, sampling: SampleOptions | None = None
) -> Written:
    """Enlarge an image by the first stage's factor.

    Args:
        model: A pipeline of the task upscale: a directory or hub id.
        image: An RGB image file; its sides must suit the U-Net.
        out: Folder of the images.
        num: Number of variants.
        sampling: The sampler; --tile for images larger than those of training.

    Raises:
        InputError: When the file does not fit the model.
    """
    options = sampling or SampleOptions()
    check_number("num", num, low=1, integer=True)
    pixels = read_image(image)
    loaded = _load(model, out, options, (LowResConditioner,), image)
    height, width = (side * loaded.factor for side in pixels.shape[-2:])
    batch = {"low_res": pixels.expand(num, -1, -1, -1)}
    samples = _sample(loaded, batch, options, height, width)
    return _write(out, samples.images, {"model": model, "image": image} | asdict(options))


def layout(
    model: str, boxes: Path, out: Path, *, num: int = 1, sampling: SampleOptions | None = None
) -> Written:
    """Sample images of a layout.

    Args:
        model: A pipeline of the task layout: a directory or hub id.
        boxes: A JSON file: a list of [class, x0, y0, x1, y1] with corners in [0, 1].
        out: Folder of the images.
        num: Number of images.
        sampling: The sampler.

    Raises:
        InputError: When the file is no layout, or does not fit the model.
    """
    options = sampling or SampleOptions()
    check_number("num", num, low=1, integer=True)
    try:
        objects = [(int(kind), *map(float, corners)) for kind, *corners in json.loads(read_text(boxes))]
    except (ValueError, TypeError) as error:
        raise InputError(f"{boxes} is no JSON list of [class, x0, y0, x1, y1] ({error})") from error
    loaded = _load(model, out, options, (LayoutConditioner,), boxes)
    ids = loaded.conditioner.tokenize([objects]).expand(num, -1)
    samples = _sample(loaded, {"layout_ids": ids}, options)
    return _write(out, samples.images, {"model": model, "layout": objects} | asdict(options))


def semantic(
    model: str, segmentation: Path, out: Path, *, num: int = 1, sampling: SampleOptions | None = None
) -> Written:
    """Sample images of a map of classes.

    Args:
        model: A pipeline of the task semantic: a directory or hub id.
        segmentation: A single-channel or palette image file whose pixel values are classes.
        out: Folder of the images.
        num: Number of images.
        sampling: The sampler; --tile for maps larger than those of training.

    Raises:
        InputError: When the file does not fit the model.
    """
    options = sampling or SampleOptions()
    check_number("num", num, low=1, integer=True)
    classes = torch.from_numpy(np.asarray(_open(segmentation, ("L", "P", "I", "I;16"))).astype(np.int64))
    loaded = _load(model, out, options, (SemanticConditioner,), segmentation)
    batch = {"segmentation": classes.expand(num, -1, -1)}
    samples = _sample(loaded, batch, options, *classes.shape)
    return _write(out, samples.images, {"model": model, "segmentation": segmentation} | asdict(options))


def read_image(path: Path) -> Tensor:
    """Return an RGB image file as `[1, 3, H, W]` in [-1, 1].

    Raises:
        InputError: When the file is no image, or grayscale.
    """
    return to_tensor(np.asarray(_open(path, ("RGB", "RGBA", "P")).convert("RGB"))[None])


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


def _load(
    model: str,
    out: Path,
    options: SampleOptions,
    allowed: tuple[type[Conditioner] | None, ...],
    *sources: Path,
) -> LatentModel:
    options.settings()
    check_number("batch_size", options.batch_size, low=1, integer=True)
    device = resolve_device(options.device)
    check_folder(out, _IMAGES, sources=(model, *sources))
    loaded = load_model(model, truncate=options.truncate)
    kind = None if loaded.conditioner is None else type(loaded.conditioner)
    if kind not in allowed:
        raise InputError(f"{model} takes the command {VERBS.get(kind, 'sample')!r}, not this one")
    conditioner = None if loaded.conditioner is None else loaded.conditioner.to(device).eval()
    return replace(
        loaded, unet=loaded.unet.to(device).eval(), vae=loaded.vae.to(device).eval(), conditioner=conditioner
    )


def _sample(
    model: LatentModel,
    batch: Mapping[str, Any],
    options: SampleOptions,
    height: int | None = None,
    width: int | None = None,
) -> Samples:
    return sample(
        model,
        batch,
        height=height,
        width=width,
        settings=options.settings(),
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _write(out: Path, images: Tensor, record: Mapping[str, Any], rows: Tensor | None = None) -> Written:
    """Write images as PNG, rows as one wide PNG a sample, and what was asked for as config.yaml."""
    check_finite("images", images)
    out = Path(out)
    pictures = {f"{index:05d}.png": pixels for index, pixels in enumerate(to_uint8(images))}
    shown = {}
    if rows is not None and len(rows):
        for index in range(rows.shape[1]):
            shown[f"{index:05d}-rows.png"] = np.concatenate(list(to_uint8(rows[:, index])), axis=1)
    with results(out, _IMAGES, record) as folder:
        for name, pixels in (pictures | shown).items():
            Image.fromarray(pixels).save(folder / name)
    return Written(tuple(out / name for name in pictures), tuple(out / name for name in shown))
