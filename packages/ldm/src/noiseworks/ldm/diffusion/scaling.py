"""The scale of latents, and caches of encoded images (sections 3.2 and 4.3.2, appendix D.1)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.artifacts import atomic_write, check_writable
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.backbones.latents import fingerprint
from torch import Tensor, nn
from torch.utils.data import Dataset

CACHE_KIND = "ldm/latents"
_CONFIG = "config.json"


@torch.no_grad()
def posterior(vae: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return mean and log-variance [B, C, h, w] of a KL model, or un-quantised latents of VQ and None."""
    encoded = vae.encode(images)
    if hasattr(encoded, "latents"):
        return encoded.latents, None
    return encoded.latent_dist.mean, encoded.latent_dist.logvar


def estimate_scale(vae: nn.Module, loader: Iterable[Any], batches: int = 1, seed: int = 0) -> float:
    """Return s_f = 1 / std over all values of the latents of the first batches (posterior samples for KL).

    Args:
        vae: `AutoencoderKL` or `VQModel`.
        loader: Yields images [B, C, H, W] in [-1, 1], sequences that begin with them, or mappings with
            `image`.
        batches: How many batches are used; the authors use one.
        seed: Of the posterior noise.

    Raises:
        InputError: When the loader is empty or `batches` is not positive.
        NonFiniteError: When latents are not finite.
    """
    check_number("batches", batches, low=1, integer=True)
    generator = torch.Generator().manual_seed(seed)
    count, total, squares = 0, 0.0, 0.0
    for _, batch in zip(range(batches), loader, strict=False):
        images = batch["image"] if isinstance(batch, Mapping) else batch
        images = images if isinstance(images, Tensor) else images[0]
        reference = next(vae.parameters())
        latents, logvar = posterior(vae, images.to(reference))
        if logvar is not None:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + torch.exp(0.5 * logvar) * noise
        check_finite("the latents that the scale is estimated from", latents)
        latents = latents.double()
        count, total = count + latents.numel(), total + float(latents.sum())
        squares += float(latents.square().sum())
    if count < 2:
        raise InputError("no images to estimate the scale from; give a loader with at least one batch")
    variance = (squares - total**2 / count) / (count - 1)
    check_number("the variance of the latents", variance, low=0, low_open=True)
    return variance**-0.5


@torch.no_grad()
def cache_latents(
    vae: nn.Module,
    dataset: Dataset,
    out: str | Path,
    *,
    batch_size: int = 32,
    shard_rows: int = 8192,
    transform: str = "",
) -> "LatentCache":
    """Encode a dataset once and store mean and log-variance in float16, to be sampled anew at every visit.

    Encoding dominates the cost of training a small diffusion model when it is done on the fly. The cache
    stands for fixed images: with random augmentation it is not equivalent. An interrupted call goes on after
    its last shard.

    Args:
        vae: `AutoencoderKL`, or `VQModel` (its un-quantised latents, no log-variance).
        dataset: Items with `image` [C, H, W] in [-1, 1] in a fixed order; other tensors of an item are stored
            too.
        out: The cache's folder.
        batch_size: Images encoded at once.
        shard_rows: Rows of a file.
        transform: What was done to the images, in any words; part of the cache's identity.

    Raises:
        InputError: When the folder holds another cache.
        NonFiniteError: When latents overflow float16.
    """
    from safetensors.torch import save_file

    out = check_writable(out)
    identity = {"kind": CACHE_KIND, "vae": fingerprint(vae), "rows": len(dataset), "transform": transform}
    identity |= {"shard_rows": shard_rows}
    if (out / _CONFIG).is_file() and json.loads((out / _CONFIG).read_text()) != identity:
        raise InputError(f"{out} holds latents of other images or another autoencoder; name another folder")
    atomic_write(out / _CONFIG, json.dumps(identity, indent=2) + "\n")
    reference = next(vae.parameters())
    for shard, start in enumerate(range(0, len(dataset), shard_rows)):
        path = out / f"shard-{shard:05d}.safetensors"
        if path.is_file():
            continue
        parts: list[dict[str, Tensor]] = []
        stop = min(start + shard_rows, len(dataset))
        for first in range(start, stop, batch_size):
            items = [dataset[row] for row in range(first, min(first + batch_size, stop))]
            images = torch.stack([item["image"] for item in items]).to(reference)
            others = {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in items[0]}
            others.pop("image")
            parts.append(others | _half(*posterior(vae, images), first))
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        temporary = path.with_suffix(".part")
        save_file(whole, temporary)
        temporary.replace(path)
    return LatentCache(out)


def _half(mean: Tensor, logvar: Tensor | None, row: int) -> dict[str, Tensor]:
    found = {"latents": mean} if logvar is None else {"mean": mean, "logvar": logvar.clamp(-30, 20)}
    found = {name: tensor.half().cpu().contiguous() for name, tensor in found.items()}
    for name, tensor in found.items():
        check_finite(f"the {name} of the images from row {row} on, in float16", tensor)
    return found


class LatentCache(Dataset):
    """The folder of `cache_latents` as a dataset; rows are read from the files when they are asked for.

    Items are mappings with `mean` and `logvar` (KL) or `latents` (VQ), float16 [C, h, w], and the other
    tensors.

    Args:
        folder: The cache.
        vae: When given, the cache must have been made with it.

    Raises:
        ArtifactError: When the cache is missing, incomplete, or made with another autoencoder.
    """

    def __init__(self, folder: str | Path, vae: nn.Module | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / _CONFIG).is_file():
            raise ArtifactError(f"{folder} holds no cache of latents; make one with cache_latents")
        self.config = json.loads((self.folder / _CONFIG).read_text())
        if self.config.get("kind") != CACHE_KIND:
            raise ArtifactError(f"{folder} holds {self.config.get('kind')!r}, expected {CACHE_KIND!r}")
        if vae is not None and fingerprint(vae) != self.config["vae"]:
            raise ArtifactError(
                f"the latents in {folder} were made with another autoencoder; cache them again"
            )
        shards = -(-self.config["rows"] // self.config["shard_rows"])
        self.files = [self.folder / f"shard-{shard:05d}.safetensors" for shard in range(shards)]
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise ArtifactError(f"{folder} lacks {missing[0]}; run cache_latents again to complete it")

    def __len__(self) -> int:
        return self.config["rows"]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        from safetensors import safe_open

        rows = np.asarray(indices)
        shards, offsets = np.divmod(rows, self.config["shard_rows"])
        found: dict[str, list[Tensor | None]] = {}
        for shard in np.unique(shards):
            with safe_open(self.files[shard], "pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors file is not iterable
                    part, places = file.get_slice(name), found.setdefault(name, [None] * len(rows))
                    for place in np.flatnonzero(shards == shard):
                        row = int(offsets[place])
                        places[place] = part[row : row + 1]
        return {name: torch.cat(parts) for name, parts in found.items()}
