"""The options of drawing from a pipeline; nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from noiseworks.core import options
from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Options, at_least, below
from noiseworks.core.output import read_text

if TYPE_CHECKING:
    import torch

_TEXTS = (".txt", ".prompts")
_FILES = (*_TEXTS, ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".md", ".parquet")


@dataclass(frozen=True)
class Sampling(Options):
    """How images are drawn.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance scale (FLUX's true_cfg_scale).
        negative_prompt: Takes the place of the empty prompt.
        batch_size: Samples a run.
        seed: Sample i is drawn with seed + i, whatever the batch size.
    """

    num_inference_steps: Annotated[int, at_least(1)] = 20
    guidance_scale: Annotated[float, at_least(0)] = 7.5
    negative_prompt: str | None = None
    batch_size: Annotated[int, at_least(1)] = 8
    seed: Annotated[int, at_least(0), below(2**62)] = 0
    extra: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_prompt and self.guidance_scale <= 1:
            raise InputError(
                f"negative_prompt does nothing at a guidance_scale of {self.guidance_scale:g}: set one above 1"
            )


@dataclass(frozen=True)
class CallSampling(Sampling):
    """Sampling with further arguments of the pipeline's call: images, sizes, a second prompt.

    Attributes:
        extra: Arguments by name; lists and tensors with one entry a prompt are batched along.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing(Options):
    """What is drawn, and from which model.

    Attributes:
        model: A diffusers pipeline: a directory, a hub id or testbed:<name>.
        prompts: A text file with one prompt a line, or one prompt (class labels for DiT).
    """

    model: str
    prompts: str

    def begin(self, out: Path, kind: str | FolderKind, *sources: str | Path | None) -> list[str]:
        """Check the output folder, the prompts and the model's name before any work; returns the prompts.

        Args:
            out: The folder to be written.
            kind: What it will be.
            sources: What else is read, which the folder must not replace.

        Raises:
            InputError: Naming what is wrong.
        """
        check_folder(out, kind, sources=(self.model, self.prompts, *sources))
        texts = read_prompts(self.prompts)
        resolve_model(self.model)
        return texts


@dataclass(frozen=True)
class Hardware(options.Hardware):
    """Where a pipeline runs and in which precision.

    Attributes:
        device: auto (the GPU if there is one), cpu, cuda, cuda:N or mps.
        dtype: Type of the weights: auto (float32 on the CPU, bfloat16 elsewhere), float32, bfloat16 or float16.
    """

    def torch_dtype(self) -> "torch.dtype":
        """Return the type of the weights."""
        import torch

        on_cpu = self.torch_device().type == "cpu"
        return super().torch_dtype() or (torch.float32 if on_cpu else torch.bfloat16)


def read_prompts(source: str) -> list[str]:
    """Return the lines of a text file, or the one prompt that `source` is.

    What names an existing file is that file, and what looks like the name of a file is no prompt.

    Raises:
        InputError: When the file is missing, a folder, no text, of another format, or holds no prompt.
    """
    path = Path(source)
    names_a_path = len(source) < 4096 and "\0" not in source and source.strip()
    is_file = names_a_path and path.is_file()
    if names_a_path and path.is_dir():
        raise InputError(f"{source} is a folder; give a text, or a text file with one prompt a line")
    if not is_file and path.suffix in _FILES and " " not in source:
        raise InputError(
            f"no prompts file at {source}: name a text file with one prompt a line, or one prompt"
        )
    if is_file and path.suffix not in (*_TEXTS, ""):
        raise InputError(f"{source} is no text file: name a .txt file with one prompt a line")
    lines = read_text(path).splitlines() if is_file else [source]
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"no prompt in {source!r}: give a text, or a file with one a line")
    return prompts
