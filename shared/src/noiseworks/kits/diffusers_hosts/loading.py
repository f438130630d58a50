"""Loading pipelines by name and drawing latents per sample."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError, ModelNotFoundError, UnsupportedHostError
from noiseworks.core.models import resolve_model
from noiseworks.kits.diffusers_hosts.layouts import LAYOUTS, layout_of
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline")
PIXELS = (*UNCONDITIONAL, "IFPipeline")  # with texts, the last one


def load_pipeline(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    families: Sequence[str] | None = None,
) -> "DiffusionPipeline":
    """Load a diffusers pipeline by a directory, a hub id or `testbed:<name>`.

    A directory whose denoiser was pruned by `remove_units` is loaded by this package's own class; none of the
    directory's code is run.

    Args:
        name: The model's name; nothing is downloaded unless it is a hub id.
        device: Where the pipeline goes.
        dtype: Precision of the weights.
        families: The families that the caller supports, by default all known ones.

    Returns:
        The pipeline, with its progress bar switched off.

    Raises:
        ModelNotFoundError: When the model is not there, or its files are missing or corrupt.
        UnsupportedHostError: When it is a pipeline of an unknown family.
        InputError: When it is a pipeline of a known family outside `families`.
    """
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    path = resolve_model(name)
    if Path(path).is_dir():
        _check_family(name, LAYOUTS[_class_name(name, path)].family, families)
    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(path, dtype=dtype, **_pruned(path, dtype))
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"the pipeline {name} cannot be loaded: {_first_line(error)}") from error
    except SafetensorError as error:
        raise ModelNotFoundError(
            f"the pipeline {name} is missing or corrupt: {_first_line(error)}"
        ) from error
    _check_family(name, layout_of(pipe).family, families)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_image_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    families: Sequence[str] | None = None,
) -> "DiffusionPipeline":
    """Load a pixel pipeline (`PIXELS`), or one of a known family as `load_pipeline` does.

    Args:
        name: The model's name.
        device: Where the pipeline goes.
        dtype: Precision of the weights.
        families: The families that the caller supports besides.

    Raises:
        ModelNotFoundError: When it is not there or corrupt.
        UnsupportedHostError: When it is of another class.
    """
    path = resolve_model(name)
    index = Path(path) / "model_index.json"
    if not Path(path).is_dir() or (
        index.is_file() and json.loads(index.read_text()).get("_class_name") not in PIXELS
    ):
        return load_pipeline(name, device, dtype, families)
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelNotFoundError(f"the pipeline {name} cannot be loaded: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def sample_generators(seeds: Sequence[int], device: str | torch.device = "cpu") -> list[torch.Generator]:
    """Return one generator a sample for a pipeline's `generator`, so sample i is the same in any batch.

    Args:
        seeds: One seed a sample.
        device: "cpu" gives the same noise on every machine.
    """
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


def seeded_latents(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normal latents `[len(seeds), *shape]`, drawn on the CPU from one seed a sample.

    Args:
        seeds: One seed a sample.
        shape: Channels, height, width.
        device: Where the result goes.
        dtype: Type of the result.
    """
    draws = [torch.randn(tuple(shape), generator=generator) for generator in sample_generators(seeds)]
    return torch.stack(draws).to(device=device, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hosts' bars and warnings off the terminal: what goes wrong is told in one line."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    hosts = (diffusers_logging, transformers_logging)
    before = [(host.get_verbosity(), host.is_progress_bar_enabled()) for host in hosts]
    for host in hosts:
        host.set_verbosity(host.CRITICAL)
        host.disable_progress_bar()
    try:
        yield
    finally:
        for host, (verbosity, bar) in zip(hosts, before, strict=True):
            host.set_verbosity(verbosity)
            if bar:
                host.enable_progress_bar()


def _pruned(path: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the components of a directory that are of `pruned_denoiser`'s classes."""
    if not Path(path).is_dir():
        return {}
    from noiseworks.kits.diffusers_hosts import pruned_denoiser

    index = json.loads((Path(path) / "model_index.json").read_text())
    named = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    classes = {cls.__name__: cls for cls in pruned_denoiser.CLASSES}
    return {
        name: classes[cls].from_pretrained(Path(path) / name, dtype=dtype)
        for name, (library, cls) in named.items()
        if library == pruned_denoiser.FILE and cls in classes
    }


def _class_name(name: str | Path, path: str) -> str:
    """Return the pipeline class that a directory names, before anything is loaded."""
    index = Path(path) / "model_index.json"
    if not index.is_file():
        raise ModelNotFoundError(f"{name} holds no model_index.json: name the folder of a diffusers pipeline")
    try:
        cls = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotFoundError(f"{name} has a corrupt model_index.json: get the model again") from error
    if cls not in LAYOUTS:
        known = ", ".join(sorted({layout.family for layout in LAYOUTS.values()}))
        raise UnsupportedHostError(f"{name} is a {cls}, which is not supported; supported families: {known}")
    return cls


def _check_family(name: str | Path, family: str, families: Sequence[str] | None) -> None:
    if families is not None and family not in families:
        raise InputError(f"{name} is a pipeline of family {family!r}, needed: {', '.join(families)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
