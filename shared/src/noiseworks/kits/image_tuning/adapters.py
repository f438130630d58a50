"""LoRA adapters of a pipeline's denoiser: put on, switched off for the reference, saved and loaded as the host does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.artifacts import FolderKind, atomic_directory, read_tensors
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts import denoiser_of, layout_of
from torch import nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
WEIGHTS = "pytorch_lora_weights.safetensors"
LORA_FOLDER = FolderKind(None, (WEIGHTS,))
NAME = "default"


def add_lora(denoiser: nn.Module, rank: int, seed: int = 0) -> dict[str, nn.Parameter]:
    """Put fresh adapters on all attention projections, with scale 1 and in 32 bits at least; all else is frozen.

    With them the denoiser computes bit for bit what it did before, because B begins at 0.

    Args:
        denoiser: A UNet or transformer of diffusers.
        rank: Of the adapters.
        seed: Of A's first values.

    Returns:
        The adapters' weights by name.

    Raises:
        InputError: When the denoiser carries adapters already.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    if getattr(denoiser, "peft_config", None):
        raise InputError("the pipeline carries adapters already: fuse them, or unload_lora_weights() first")
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix64(seed) >> 1)
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), NAME)
    if next(denoiser.parameters()).dtype != torch.float64:
        cast_training_params(denoiser, dtype=torch.float32)
    return {name: p for name, p in denoiser.named_parameters() if p.requires_grad}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers from writing a line for each layer that does not fit; the exception says what is needed."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def reference(denoiser: nn.Module) -> Iterator[None]:
    """Switch the adapters off within a block: the denoiser is the pretrained one, and no second copy is needed."""
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def save_lora(pipe: "DiffusionPipeline", folder: str | Path) -> None:
    """Write the adapters as a LoRA directory, which `pipe.load_lora_weights(folder)` of diffusers reads."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    component = layout_of(pipe).component
    state = get_peft_model_state_dict(denoiser_of(pipe), adapter_name=NAME)
    if component == "unet":
        state = convert_state_dict_to_diffusers(state)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_directory(folder, LORA_FOLDER) as target:
        pipe.save_lora_weights(target, **{f"{component}_lora_layers": state}, weight_name=WEIGHTS)


def load_lora(pipe: "DiffusionPipeline", folder: str | Path) -> None:
    """Put a saved LoRA directory on a pipeline.

    Raises:
        InputError: When there is none, it is corrupt, or it is another model's.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} holds no {WEIGHTS}: name the folder of a tuned adapter")
    try:
        saved = sum(name.endswith((".lora_A.weight", ".lora.down.weight")) for name in read_tensors(path))
        with _quiet():
            pipe.load_lora_weights(str(folder), weight_name=WEIGHTS, adapter_name=NAME)
    except (ArtifactError, ValueError, KeyError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise InputError(f"the adapter {folder} does not fit this pipeline: {reason}") from error
    found = sum(name.endswith("lora_A.default.weight") for name, _ in denoiser_of(pipe).named_parameters())
    if not found or found != saved:
        raise InputError(
            f"the adapter {folder} is another model's: {found} of its {saved} layers are in this one"
        )
