"""Linear normalisation per dimension, fitted to the limits or the moments of data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from noiseworks.core.artifacts import atomic_write, read_json
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import ArtifactError, InputError
from torch import Tensor, nn

NormalizerMode = Literal["limits", "gaussian"]


class LinearNormalizer(nn.Module):
    """Maps x to x scale + offset, dimension by dimension, and back.

    Args:
        scale: [D], no entry zero.
        offset: [D].
    """

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        if scale.shape != offset.shape or scale.ndim != 1 or not bool((scale != 0).all()):
            raise InputError("scale and offset must be vectors of one length, scale without a zero")
        # Not part of a state dict: a policy directory keeps them in `normalizer.json`.
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("offset", offset.float(), persistent=False)

    @classmethod
    def identity(cls, dim: int) -> "LinearNormalizer":
        """Return the map that changes nothing."""
        return cls(torch.ones(dim), torch.zeros(dim))

    @classmethod
    def fit(
        cls,
        data: Tensor,
        *,
        mode: NormalizerMode = "limits",
        identity_dims: Sequence[int] = (),
        eps: float = 1e-4,
    ) -> "LinearNormalizer":
        """Fit to data [..., D].

        `limits` maps the smallest value of a dimension to -1 and the largest to 1: scale = 2 / (max - min),
        offset = -1 - scale min. A dimension whose range is below `eps` keeps scale 1 and is moved to 0.
        `gaussian` maps to mean 0 and standard deviation 1.

        Args:
            data: Finite values [..., D].
            mode: `limits` or `gaussian`.
            identity_dims: Dimensions that pass through unchanged, such as rotations or a gripper.
            eps: Range below which a dimension counts as constant.

        Raises:
            InputError: When the data are empty or not finite, or a dimension is out of range.
        """
        check_choice("mode", mode, ("limits", "gaussian"))
        rows = torch.as_tensor(data).double().flatten(0, -2)
        if not len(rows) or not bool(rows.isfinite().all()):
            raise InputError("a normaliser needs at least one row of finite values")
        if mode == "limits":
            low, spread = rows.amin(0), rows.amax(0) - rows.amin(0)
            scale = torch.where(spread < eps, 1.0, 2 / spread.clamp_min(1e-300))
            offset = torch.where(spread < eps, -low, -1 - scale * low)
        else:
            mean, spread = rows.mean(0), rows.std(0, correction=0)
            scale = torch.where(spread < eps, 1.0, 1 / spread.clamp_min(1e-300))
            offset = -mean * scale
        for dim in identity_dims:
            if not 0 <= dim < rows.shape[1]:
                raise InputError(f"identity_dims must lie in 0 to {rows.shape[1] - 1}, got {dim}")
            scale[dim], offset[dim] = 1.0, 0.0
        return cls(scale, offset)

    def normalize(self, x: Tensor) -> Tensor:
        """Return x [..., D] in normalised units."""
        return x * self.scale + self.offset

    def unnormalize(self, x: Tensor) -> Tensor:
        """Return x [..., D] in the data's units."""
        return (x - self.offset) / self.scale

    def is_identity(self, dims: Sequence[int]) -> bool:
        """Return whether the given dimensions pass through unchanged."""
        index = list(dims)
        return bool((self.scale[index] == 1).all() and (self.offset[index] == 0).all())

    def record(self) -> dict[str, list[float]]:
        """Return scale and offset as lists."""
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist()}


def save_normalizers(path: Path, normalizers: dict[str, LinearNormalizer]) -> None:
    """Write normalisers by name to a JSON file."""
    atomic_write(path, json.dumps({name: n.record() for name, n in normalizers.items()}, indent=2) + "\n")


def load_normalizers(path: Path) -> dict[str, LinearNormalizer]:
    """Read a file of `save_normalizers`.

    Raises:
        ArtifactError: When it is missing or corrupt.
    """
    try:
        records = read_json(path, "normaliser")
        return {
            name: LinearNormalizer(torch.tensor(r["scale"]), torch.tensor(r["offset"]))
            for name, r in records.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is missing or corrupt ({error}); save the policy again") from error
