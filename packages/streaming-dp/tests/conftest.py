"""A host whose score is exact: independent Gaussian actions, each position with its own mean and width."""

import pytest
import torch
from noiseworks.kits.policies import LinearNormalizer, make_scheduler


class GaussianHost:
    """Actions N(mean_p, 0.3^2) at position p, whatever is observed; every value of a level is allowed."""

    n_obs_steps, action_dim = 2, 2

    def __init__(self, horizon=8, n_action_steps=2, steps=100):
        self.horizon, self.n_action_steps = horizon, n_action_steps
        self.scheduler = make_scheduler(steps, clip_sample=False)
        self.normalizer = LinearNormalizer.identity(2)
        self.mean = torch.linspace(-0.5, 0.5, horizon)[:, None] * torch.tensor([1.0, -1.0])
        self.seen = []

    def encode(self, obs):
        return obs["obs"].flatten(1)

    def denoise(self, x, k, cond):
        self.seen.append(k)
        bar = self.scheduler.alphas_cumprod[torch.as_tensor(k)]
        bar = bar[:, None, None] if bar.ndim == 1 else bar[..., None]
        return (1 - bar).sqrt() * (x - bar.sqrt() * self.mean) / (0.09 * bar + 1 - bar)


@pytest.fixture
def gaussian():
    return GaussianHost


@pytest.fixture
def look():
    """Observations for a number of environments."""
    return lambda rows: {"obs": torch.zeros(rows, 3)}
