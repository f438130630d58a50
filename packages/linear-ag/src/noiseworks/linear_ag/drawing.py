"""What the commands share: naming a model and its prompts, progress, and files of a run's folder."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from noiseworks.core.cli import SPREAD
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.loading import load_pipeline
from noiseworks.linear_ag.sampling import Progress, Sampling
from rich.progress import Progress as Bars

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")


@dataclass(frozen=True)
class Drawing:
    """What the commands share: the model, the prompts and how to draw.

    Attributes:
        pipeline: A directory, a hub id or testbed:<name>.
        prompts: A text file with one prompt a line, or one prompt (class labels for DiT).
        steps: Number of denoising steps.
        scale: Guidance scale, above 1.
        negative: Negative prompt.
        seed: Sample i is drawn with seed + i.
        batch_size: Samples a run.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.
    """

    pipeline: str
    prompts: str
    steps: int = 20
    scale: float = 7.5
    negative: str | None = None
    seed: int = 0
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "float32"

    @property
    def sampling(self) -> Sampling:
        """The same as the library's functions take it."""
        return Sampling(self.steps, self.scale, self.negative, self.batch_size, self.seed)


Options = Annotated[Drawing, SPREAD]


def load_drawing(drawing: Drawing) -> tuple[Any, list]:
    """Return the pipeline and its prompts.

    Raises:
        InputError: When device, precision, prompts or model are not there or do not fit each other.
    """
    target, precision = resolve_device(drawing.device), resolve_dtype(drawing.dtype)
    texts = read_prompts(drawing.prompts)
    pipe = load_pipeline(drawing.pipeline, target, precision, FAMILIES)
    return pipe, prompts_for(pipe, texts)


def read_prompts(source: str) -> list[str]:
    """Return the lines of a text file, or the one prompt that `source` is.

    Raises:
        InputError: When the file is missing or holds no prompt.
    """
    path = Path(source)
    if path.suffix == ".txt" and not path.is_file():
        raise InputError(
            f"no prompts file at {source}: name a text file with one prompt a line, or one prompt"
        )
    lines = path.read_text().splitlines() if path.suffix == ".txt" else [source]
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"no prompts in {source}: put one a line")
    return texts


def prompts_for(pipe: Any, texts: list[str]) -> list:
    """Return prompts as the pipeline takes them: texts, or class labels for DiT.

    Raises:
        InputError: When a label is no whole number.
    """
    if type(pipe).__name__ != "DiTPipeline":
        return texts
    if not all(text.isdigit() for text in texts):
        raise InputError("a DiT pipeline takes class labels: give whole numbers as prompts")
    return [int(text) for text in texts]


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show a bar; what it yields is called with (done, in all)."""
    with Bars(transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def write_rows(path: Path, header: tuple[str, ...], rows: Any) -> None:
    """Write a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path.write_text(text.getvalue())


def write_config(folder: Path, **values: Any) -> None:
    """Write a run's `config.yaml`."""
    # JSON is YAML, and needs no further library.
    record = {**values, "torch": torch.__version__}
    (folder / "config.yaml").write_text(json.dumps(record, indent=2, default=str) + "\n")
