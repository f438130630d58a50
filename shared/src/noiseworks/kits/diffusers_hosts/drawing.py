"""Drawing many prompts with one seed a sample, and the folder that a command leaves: images, rows, settings."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import FolderKind
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.loading import load_pipeline, sample_generators
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware, Sampling
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int], None]
Prompts = Sequence[str] | Sequence[int]

CONFIG = "config.yaml"


def load_for(
    drawing: Drawing, prompts: Sequence[str], hardware: Hardware, families: Sequence[str]
) -> tuple["DiffusionPipeline", list]:
    """Return a pipeline on its device, and prompts as it takes them: texts, or class labels for DiT.

    Args:
        drawing: Names the model.
        prompts: Its prompts, from `Drawing.begin`.
        hardware: Where it runs.
        families: The families that the method supports.

    Raises:
        InputError: When the model is not there or of another family, or a label is no whole number.
    """
    pipe = load_pipeline(drawing.model, hardware.torch_device(), hardware.torch_dtype(), families)
    return pipe, prompts_for(pipe, prompts)


def prompts_for(pipe: "DiffusionPipeline", prompts: Sequence[str]) -> list:
    """Return prompts as a pipeline takes them: texts, or class labels for DiT.

    Raises:
        InputError: When a label is no whole number.
    """
    if layout_of(pipe).family != "dit":
        return list(prompts)
    if not all(text.isascii() and text.isdigit() for text in prompts):
        raise InputError("a DiT pipeline takes class labels: give whole numbers as prompts")
    return [int(text) for text in prompts]


def draw(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    output_type: str = "latent",
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[Any]:
    """Yield one batch of images at a time, in the order of the prompts.

    Args:
        pipe: The pipeline, with whatever is attached to it.
        prompts: Texts, or class labels for DiT.
        sampling: How to draw.
        output_type: "latent", "pt", "np" or "pil"; DiT has no "latent" and gives "pt" instead.
        progress: Called with (samples done, samples in all) after each batch.
        start: The prompt to begin with; samples keep their seeds.

    Raises:
        InputError: When there are no prompts.
    """
    if not prompts:
        raise InputError("no prompts given: name at least one")
    family = layout_of(pipe).family
    if family == "dit" and output_type == "latent":
        output_type = "pt"
    for first in range(start, len(prompts), sampling.batch_size):
        rows = slice(first, min(first + sampling.batch_size, len(prompts)))
        seeds = range(sampling.seed + rows.start, sampling.seed + rows.stop)
        yield pipe(
            **call_arguments(family, prompts, sampling, rows),
            num_inference_steps=sampling.num_inference_steps,
            generator=sample_generators(seeds),
            output_type=output_type,
        ).images
        if progress is not None:
            progress(rows.stop, len(prompts))


def call_arguments(family: str, prompts: Prompts, sampling: Sampling, rows: slice) -> dict[str, Any]:
    """Return a family's call arguments for some of the prompts.

    Args:
        family: The pipeline's family.
        prompts: All prompts.
        sampling: How to draw.
        rows: Which of the prompts.
    """
    chosen = list(prompts[rows])
    batched = {k: v[rows] if _per_prompt(v, len(prompts)) else v for k, v in sampling.extra.items()}
    if family == "dit":
        return {"class_labels": chosen, "guidance_scale": sampling.guidance_scale, **batched}
    arguments: dict[str, Any] = {"prompt": chosen, **batched}
    if family == "flux":  # true guidance needs a negative prompt, if only an empty one
        arguments["true_cfg_scale"] = sampling.guidance_scale
        arguments["negative_prompt"] = [sampling.negative_prompt or ""] * len(chosen)
    else:
        arguments["guidance_scale"] = sampling.guidance_scale
        if sampling.negative_prompt is not None:
            arguments["negative_prompt"] = [sampling.negative_prompt] * len(chosen)
    return arguments


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show a bar; what it yields is called with (done, in all)."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def draw_into(folder: Path, pipe: "DiffusionPipeline", prompts: Prompts, sampling: Sampling) -> int:
    """Draw prompts under a bar and write the images as `0000.png`, `0001.png`, ...; returns their number."""
    count = 0
    with progress_bar("drawing") as progress:
        for batch in draw(pipe, prompts, sampling, "pil", progress):
            for image in batch:
                image.save(folder / f"{count:04d}.png")
                count += 1
    return count


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path.write_text(text.getvalue())


def write_config(folder: Path, kind: FolderKind, **values: Any) -> None:
    """Write a run's `config.yaml`, which says what the folder is and what made it."""
    import torch

    # JSON is YAML, and needs no further library.
    record = {"kind": kind.name, **values, "torch": torch.__version__}
    (folder / CONFIG).write_text(json.dumps(record, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return vars(value) if hasattr(value, "__dict__") else str(value)


def _per_prompt(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple | Tensor) and len(value) == count
