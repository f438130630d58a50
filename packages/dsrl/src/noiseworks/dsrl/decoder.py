"""A frozen policy as a function of its initial noise, a = f(s, w) (section 4)."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from noiseworks.core.errors import InputError
from torch import Tensor

Observation = np.ndarray | Mapping[str, np.ndarray]
REPEATS_TO = 1e-5
PROBE = 1e-2  # length of a finite difference, in deviations of the noise


class NoiseDecoder(Protocol):
    """What DSRL needs of a policy: a black box, no weights and no gradients.

    Attributes:
        noise_shape: Shape of the initial noise of one observation.
        chunk: Actions that are executed, C.
        action_dim: Width of an action, Da.
    """

    noise_shape: tuple[int, ...]
    chunk: int
    action_dim: int

    def decode(self, obs: Observation, noise: Tensor) -> Tensor:
        """Return actions [B, C, Da] in environment units of observations [B, ...] and noise [B, *noise_shape]."""
        ...


def check_decoder(decoder: NoiseDecoder, obs: Observation) -> None:
    """Refuse a decoder that gives other actions for the same noise, or actions of another shape.

    Args:
        decoder: The decoder.
        obs: Some observations [B, ...].

    Raises:
        InputError: Saying which.
    """
    rows = len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((rows, *decoder.noise_shape), generator=generator)
    first, second = (decoder.decode(obs, noise.clone()) for _ in range(2))
    expected = (rows, decoder.chunk, decoder.action_dim)
    if tuple(first.shape) != expected:
        raise InputError(f"the decoder gives actions of shape {tuple(first.shape)}, expected {expected}")
    difference = float((first - second).abs().max())
    if not difference <= REPEATS_TO:
        raise InputError(
            f"the decoder is not deterministic: the same noise gave actions {difference:.2g} apart; sample with DDIM "
            "and eta 0, in evaluation mode"
        )


class Sensitivity(NamedTuple):
    """How steerable a frozen policy is, observation by observation.

    Attributes:
        slope: How far a chunk moves for a unit of noise in a random direction, root mean square, [B].
        spread: Deviation of an action over normal noise, [B]; where it is 0, noise decides nothing.
    """

    slope: Tensor
    spread: Tensor


def sensitivity(
    decoder: NoiseDecoder, obs: Observation, *, draws: int = 32, tie: str = "none", seed: int = 0
) -> Sensitivity:
    """Return how much the noise decides, by finite differences, so that the decoder may be a black box.

    Args:
        decoder: The decoder.
        obs: Some observations [B, ...].
        draws: Noises for each.
        tie: `repeat` asks for noise that all positions share.
        seed: Of the draws.
    """

    def repeated(value: np.ndarray) -> np.ndarray:
        return np.repeat(value, draws, axis=0)

    many = {k: repeated(v) for k, v in obs.items()} if isinstance(obs, Mapping) else repeated(obs)
    rows = len(next(iter(many.values())) if isinstance(many, Mapping) else many)
    size = (rows, noise_dim(decoder.noise_shape, tie))
    generator = torch.Generator().manual_seed(seed)
    noise, direction = (torch.randn(size, generator=generator) for _ in range(2))
    moved = noise + PROBE * direction / direction.norm(dim=1, keepdim=True)
    first, second = (
        decoder.decode(many, untie(value, decoder.noise_shape, tie)).reshape(rows // draws, draws, -1)
        for value in (noise, moved)
    )
    slope = (second - first).norm(dim=-1).square().mean(1).sqrt() / PROBE
    return Sensitivity(slope, first.std(1).square().mean(1).sqrt())


def untie(noise: Tensor, shape: tuple[int, ...], tie: str) -> Tensor:
    """Return the actor's noise [B, D] in a decoder's shape [B, *shape]; `repeat` gives all positions the same."""
    if tie == "repeat":
        return noise.reshape(len(noise), *[1] * (len(shape) - 1), shape[-1]).expand(len(noise), *shape)
    return noise.reshape(len(noise), *shape)


def noise_dim(shape: tuple[int, ...], tie: str) -> int:
    """Return the width D of the actor's noise."""
    return shape[-1] if tie == "repeat" else int(np.prod(shape))
