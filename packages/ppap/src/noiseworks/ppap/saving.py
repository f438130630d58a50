"""Experts and synthetic images as folders."""

from dataclasses import asdict
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError, first_line
from noiseworks.kits.backbones.latents import fingerprint
from noiseworks.ppap.experts import Experts
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Adapters
from torch import Tensor

KIND = "ppap/experts"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def save_experts(experts: Experts, folder: str | Path) -> None:
    """Write experts, without the network that they stand on, as config.json and model.safetensors."""
    config = {
        "adapters": asdict(experts.settings),
        "bounds": experts.bounds,
        "base": fingerprint(experts.base),
    }
    save_artifact(folder, KIND, config, experts.state_dict())


def load_experts(folder: str | Path, guide: Guide) -> Experts:
    """Read experts and put them on their guide.

    Raises:
        ArtifactError: When the folder is missing, corrupt or of another kind.
        InputError: When they are another guide's.
    """
    config, tensors = load_artifact(folder, KIND)
    try:
        settings, bounds, base = Adapters(**config["adapters"]), config["bounds"], config["base"]
        if fingerprint(guide.model) != base:
            raise InputError(f"the experts in {folder} are another guide's: train them for this one")
        experts = Experts(guide.model, bounds, settings)
        experts.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(
            f"the experts in {folder} are corrupt or incomplete ({first_line(error)}); train them again"
        ) from error
    return experts.eval()


def read_folder(folder: Path, channels: int = 3) -> Tensor:
    """Return the images of a folder in the order of their names, [n, channels, H, W] in [-1, 1].

    Args:
        folder: The folder.
        channels: 3, or 1 for shades of grey.

    Raises:
        InputError: When there is none, one cannot be read, or their sizes differ.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    files = (
        sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    )
    try:
        read = [np.asarray(Image.open(one).convert("RGB" if channels == 3 else "L")) for one in files]
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"an image in {folder} cannot be read: {error}") from error
    if not read or len({one.shape for one in read}) > 1:
        raise InputError(f"{folder} must hold images of one size ({', '.join(SUFFIXES)}), it has {len(read)}")
    pixels = torch.from_numpy(np.stack(read)).float() / 127.5 - 1
    return pixels.permute(0, 3, 1, 2) if channels == 3 else pixels[:, None]
