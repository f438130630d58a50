"""The distribution of the initial noise, and the network that expects its reward."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.steps import log_prob
from noiseworks.find.options import Penalty
from torch import Tensor, nn

KIND = "find/noise"


class NoisePolicy(nn.Module):
    """A Gaussian over initial noise, `z = mu + sigma e`, standard normal at first. sigma itself is the parameter.

    Args:
        shape: Of one sample's latents.
        cells: Mean and sigma are shared within each of `cells x cells` cells of a channel; None gives each element its
            own.
        sigma_min: sigma is never below it.

    Raises:
        InputError: When sigma_min is not above 0, or the latents cannot be divided so.
    """

    def __init__(self, shape: Sequence[int], cells: int | None = None, sigma_min: float = 1e-4) -> None:
        super().__init__()
        check_number("sigma_min", sigma_min, low=0, low_open=True)
        self.shape, self.cells, self.sigma_min = tuple(shape), cells, sigma_min
        if cells is not None and (len(shape) < 3 or shape[-1] % cells or shape[-2] % cells):
            raise InputError(
                f"latents of shape {self.shape} cannot be shared in {cells} x {cells} cells: cells must divide height "
                "and width"
            )
        own = self.shape if cells is None else (*self.shape[:-2], cells, cells)
        self.own_mean = nn.Parameter(torch.zeros(1, *own))
        self.own_std = nn.Parameter(torch.ones(1, *own))

    @property
    def mean(self) -> Tensor:
        """Mean of every element [1, ...]."""
        return self._spread(self.own_mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of every element [1, ...]."""
        return self._spread(self.own_std)

    def _spread(self, own: Tensor) -> Tensor:
        if self.cells is None:
            return own
        height, width = (side // self.cells for side in self.shape[-2:])
        return own.repeat_interleave(height, -2).repeat_interleave(width, -1)

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], antithetic: bool = False) -> Tensor:
        """Return noise, one seed a sample, without gradients [n, ...].

        Args:
            seeds: One a sample, or one a pair.
            antithetic: Whether each seed gives a pair, `mu + sigma e` and behind it `mu - sigma e`.
        """
        draws = [torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        noise = torch.stack(draws).to(self.own_mean)
        if antithetic:
            noise = torch.stack([noise, -noise], 1).flatten(0, 1)
        return self.mean + self.std * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the mean over the elements of their log-density [n]; a sum would let every ratio overflow."""
        return log_prob(z, self.mean, self.std)

    def penalty(self, kind: Penalty = "squared") -> Tensor:
        """Return the distance from standard normal noise: mean of `mu^2 + (sigma - 1)^2`, or the true divergence.

        Raises:
            InputError: When the kind is unknown.
        """
        check_choice("penalty", kind, ("squared", "kl"))
        if kind == "kl":
            return (0.5 * (self.std**2 + self.mean**2 - 1) - self.std.log()).mean()
        return (self.mean**2 + (self.std - 1) ** 2).mean()

    @torch.no_grad()
    def clamp_std(self) -> None:
        """Keep sigma at `sigma_min` or above."""
        self.own_std.clamp_(min=self.sigma_min)

    def save_pretrained(self, folder: str | Path, prompt: str) -> None:
        """Write the distribution of a prompt as an artifact."""
        config = {"prompt": prompt, "shape": self.shape, "cells": self.cells, "sigma_min": self.sigma_min}
        save_artifact(folder, KIND, config, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "tuple[NoisePolicy, str]":
        """Return a distribution and its prompt.

        Raises:
            ArtifactError: When the folder holds none.
        """
        config, tensors = load_artifact(folder, KIND)
        with rebuilding(folder, "noise distribution"):
            policy = cls(config["shape"], config["cells"], config["sigma_min"])
            policy.load_state_dict(tensors)
        return policy, config["prompt"]


class RewardCalibrator(nn.Module):
    """V(mu, sigma, text): the reward to expect of a distribution, a baseline that follows the policy.

    Args:
        shape: Of one sample's latents.
        text_dim: Width of the prompt's feature.
        hidden: Width of its two layers behind the first.
    """

    def __init__(self, shape: Sequence[int], text_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * math.prod(shape) + text_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        nn.init.xavier_normal_(self.layers[-1].weight)

    def forward(self, policy: NoisePolicy, text: Tensor) -> Tensor:
        """Return the expected reward, a scalar; the distribution gets no gradient.

        Args:
            policy: The distribution.
            text: The prompt's feature [text_dim].
        """
        state = torch.cat([policy.mean.detach().flatten(), policy.std.detach().flatten(), text])
        return self.layers(state)[0]
