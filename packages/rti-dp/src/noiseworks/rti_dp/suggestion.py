"""Where a warm start should begin: from how far yesterday's plan is from today's, on recorded episodes.

The paper leaves the choice of K' to a search and suggests, as future work, to compare the moved prediction with
the forward process. Here: full predictions A_t and A_{t-1} of neighbouring steps, r = moved A_{t-1} - A_t, and the
smallest K' whose noise covers the residual, sqrt(1 - abar_K') >= c q(s / sqrt(abar_K')), with s the root mean
square of r at each entry and dimension and q their 95 % quantile.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes, shift
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.rti_dp.options import Choice, parse_discrete
from torch import Tensor


@dataclass(frozen=True)
class Suggestion:
    """A list of steps and what it was chosen by.

    Attributes:
        steps: The list, for `RTIPolicy`.
        start: K', its first index.
        covered: Whether the noise at K' covers the residual; False when no level's does.
        residual: Root mean square of the moved prediction minus the new one, by dimension, normalised units.
            Discrete dimensions stand out.
        quantile: The 95 % quantile that K' was chosen by, over entries of the horizon and chosen dimensions.
        pairs: Pairs of neighbouring steps.
    """

    steps: tuple[int, ...]
    start: int
    covered: bool
    residual: tuple[float, ...]
    quantile: float
    pairs: int


def suggest_steps(
    host: Any, episodes: Episodes, choice: Choice = Choice(), *, obs_key: str = "obs"
) -> Suggestion:
    """Return a list of steps for a policy from recorded episodes.

    Both predictions of a pair start from the same noise, so that they rarely differ by which of two ways round is
    taken.

    Args:
        host: The policy.
        episodes: Recorded observations; actions are not read.
        choice: Length of the list, discrete dimensions that are left out, and how residuals are weighed.
        obs_key: Name under which the policy reads an observation.

    Raises:
        InputError: When a number is out of range or no episode has two steps.
        NonFiniteError: When the policy's predictions are not finite.
    """
    host = as_host(host)
    kept = [d for d in range(host.action_dim) if d not in set(parse_discrete(choice.discrete)[0])]
    if not kept:
        raise InputError("the discrete dimensions leave no dimension to choose by")
    residual = residuals(host, episodes, choice.pairs, obs_key, choice.seed).double()
    spread = residual.square().mean(0).sqrt()
    quantile = float(torch.quantile(spread[:, kept].flatten(), 0.95))
    abars = host.scheduler.alphas_cumprod.double()
    enough = ((1 - abars).sqrt() >= choice.c * quantile / abars.sqrt()).nonzero().flatten()
    covered = len(enough) > 0
    start = int(enough[0]) if covered else int((abars * (1 - abars)).argmax())
    by_dim = residual.square().mean((0, 1)).sqrt()
    steps = thin_steps(start, choice.nfe)
    return Suggestion(steps, start, covered, tuple(by_dim.tolist()), quantile, len(residual))


@torch.inference_mode()
def residuals(host: Any, episodes: Episodes, pairs: int, obs_key: str = "obs", seed: int = 0) -> Tensor:
    """Return moved A_{t-1} - A_t in normalised units, [pairs, Tp, Da], for steps t drawn from the episodes.

    Raises:
        InputError: When no episode has two steps.
    """
    starts = np.repeat(episodes.starts, np.diff(episodes.ends, prepend=0))
    later = np.flatnonzero(np.arange(len(episodes.obs)) > starts)
    if not len(later):
        raise InputError("suggesting steps needs an episode of at least two steps")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(later, min(pairs, len(later)), replace=False))
    policy, both = DiffusionPolicy(host), []
    for step in (chosen - 1, chosen):
        past = np.maximum(step[:, None] + np.arange(1 - host.n_obs_steps, 1), starts[chosen, None])
        obs = {obs_key: torch.from_numpy(np.ascontiguousarray(episodes.obs[past]))}
        both.append(policy.predict_chunk(obs, torch.Generator().manual_seed(seed)).prediction)
        check_finite("the policy's prediction", both[-1])
    return shift(both[0]) - both[1]


def thin_steps(start: int, nfe: int) -> tuple[int, ...]:
    """Return at most `nfe` indices from `start` to 0, with gaps that grow geometrically away from 0.

    Args:
        start: First index, K'.
        nfe: Length of the list; shorter lists are those of all indices.

    Raises:
        InputError: When a number is out of range, or one call would have to lead from above 0 to 0.
    """
    check_number("start", start, low=0, integer=True)
    check_number("nfe", nfe, low=1, integer=True)
    if nfe == 1 and start > 0:
        raise InputError(f"a list from {start} to 0 needs at least 2 calls, got nfe = 1")
    if nfe > start:
        return tuple(range(start, -1, -1))
    found = [start]
    for left in range(nfe - 2, -1, -1):
        share = left / (nfe - 1)
        wanted = round(math.expm1(share * math.log1p(start)))
        # Room for the indices that follow.
        found.append(max(left, min(found[-1] - 1, wanted)))
    return tuple(found)
