"""How a pipeline does at a reward: the same prompts and noise under different weights, and what is compared."""

from dataclasses import dataclass

import torch
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.options import Trial
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.image_tuning.rewards import Reward, score
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Draws:
    """Images of prompts, several of each in a row, and what they are worth.

    Attributes:
        images: In [0, 1] on the CPU [n, 3, H, W].
        latents: What they were decoded from [n, ...].
        prompt_ids: Each image's prompt, int64 [n].
        rewards: float32 [n, m].
    """

    images: Tensor
    latents: Tensor
    prompt_ids: Tensor
    rewards: Tensor


def draw_scored(policy: Policy, reward: Reward, trial: Trial) -> Draws:
    """Draw each prompt of a policy several times and score the images; equal trials start from equal noise.

    Args:
        policy: The policy, with whatever weights it has now.
        reward: What images are worth.
        trial: How many, and the seed.
    """
    ids = torch.arange(len(policy.prompts)).repeat_interleave(trial.per_prompt)
    starts, noise = ([mix64(trial.trial_seed, i, k) >> 2 for i in range(len(ids))] for k in (0, 1))
    drawn = policy.roll_out(ids, starts, noise)
    latents = drawn.latents[:, -1]
    images = policy.decode(latents)
    return Draws(images, latents, ids, score(reward, images, drawn.texts))


def win_rate(new: Tensor, old: Tensor) -> Tensor:
    """Return for each pair 1 where the new reward is larger, 1/2 where they are equal, else 0 [n]."""
    return 0.5 * (1 + (new - old).sign())


def win_interval(wins: Tensor, groups: Tensor, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean of wins, by a bootstrap over groups and, within them, their members.

    Where there is one group, its members alone are drawn anew. Equal wins give equal intervals: the draws are seeded.

    Args:
        wins: From `win_rate` [n].
        groups: The prompt of each, int64 [n].
        draws: Of the bootstrap.
    """
    generator, order = torch.Generator().manual_seed(0), groups.argsort(stable=True)
    values, sizes = wins.double()[order], groups.unique(return_counts=True)[1]
    first, total, count = sizes.cumsum(0) - sizes, torch.zeros(draws, dtype=torch.float64), torch.zeros(draws)
    for _ in sizes:
        chosen = torch.randint(len(sizes), (draws,), generator=generator)
        n = sizes[chosen]
        place = (torch.rand(draws, int(sizes.max()), generator=generator) * n[:, None]).long()
        taken = values[first[chosen][:, None] + place.clamp(max=n[:, None] - 1)]
        total += (taken * (torch.arange(taken.shape[1]) < n[:, None])).sum(1)
        count += n
    low, high = (total / count).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def diversity(features: Tensor, groups: Tensor) -> Tensor:
    """Return the mean distance between the members of each group [number of groups].

    Args:
        features: [n, d]; flattened images or latents will do.
        groups: int64 [n]; each has two members at least.
    """
    found = []
    for group in groups.unique():
        own = features[groups == group].flatten(1).double()
        found.append(torch.pdist(own).mean())
    return torch.stack(found)
