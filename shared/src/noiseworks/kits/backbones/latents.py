"""Autoencoders that a model of latents stands on: loading one by name, and knowing it again."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, VQModel

KINDS = ("AutoencoderKL", "VQModel")


def load_autoencoder(name: str | Path, kinds: Collection[str] = KINDS) -> "AutoencoderKL | VQModel":
    """Return an autoencoder in evaluation mode, without gradients.

    Args:
        name: A directory (of the autoencoder, or of a pipeline that holds one), `testbed:<name>` or a hub id.
        kinds: Classes of diffusers that will do.

    Raises:
        InputError: When there is none, or it is of another class.
        ModelNotFoundError: When the name is none of the three.
    """
    import diffusers

    path = resolve_model(name)
    if Path(path).is_dir():
        inner = [Path(path) / sub for sub in ("", "vae", "vqvae")]
        path = next((str(folder) for folder in inner if (folder / "config.json").is_file()), None)
        if path is None:
            raise InputError(
                f"{name} holds no first stage (config.json); name a folder that an autoencoder's save_pretrained wrote"
            )
    kind = diffusers.AutoencoderKL.load_config(path).get("_class_name")
    if kind not in kinds:
        raise InputError(f"{name} is a {kind}, expected an {' or '.join(kinds)}")
    return getattr(diffusers, kind).from_pretrained(path).eval().requires_grad_(False)


def fingerprint(network: nn.Module) -> str:
    """Return a short hash of a network's weights and statistics, so that what was made for it serves no other."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
