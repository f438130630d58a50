"""How far cached calls are from routed ones, in units of float32 rounding."""

from typing import NamedTuple

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.mode.network import Condition
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.timing import random_condition

EPSILON = torch.finfo(torch.float32).eps


class Difference(NamedTuple):
    """The greatest |cached - routed| of a denoiser call, over all levels of a sampler.

    Attributes:
        absolute: As it is.
        roundings: Over one float32 rounding (2^-23) at the magnitude of the level's output, its greatest |D|.
    """

    absolute: float
    roundings: float


@torch.no_grad()
def largest_difference(
    policy: EDMPolicy, batch: int, seed: int = 0, cond: Condition | None = None
) -> Difference:
    """Return how far cached calls are from routed ones.

    Args:
        policy: A policy with a cache.
        batch: Rows.
        seed: Of the noisy actions, normals of the level's scale.
        cond: Conditions of the rows; by default normal draws, which are wilder than what a policy meets.

    Raises:
        InputError: When the policy has no cache.
        NonFiniteError: When an output is NaN or infinite.
    """
    if policy.cache is None:
        raise InputError("the policy has no cache: call cache_experts first")
    config, generator = policy.model.config, torch.Generator().manual_seed(seed)
    cond = random_condition(policy.model, batch, generator) if cond is None else cond
    absolute = roundings = 0.0
    for sigma in policy.sigmas[:-1]:
        scale = (sigma**2 + config.sigma_data**2) ** 0.5
        x = scale * torch.randn((batch, config.chunk, config.action_dim), generator=generator)
        x = x.to(policy.model.denoiser.pos_emb)
        routed = policy.model.denoise(x, torch.full((batch,), sigma, dtype=torch.float64), cond)
        cached = policy.denoise(x, sigma, cond)
        check_finite(f"the routed output at sigma {sigma:g}", routed)
        check_finite(f"the cached output at sigma {sigma:g}", cached)
        found = float((cached - routed).abs().max())
        absolute = max(absolute, found)
        roundings = max(roundings, found / (EPSILON * float(routed.abs().max())))
    return Difference(absolute, roundings)
