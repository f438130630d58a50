"""Exact scores of Gaussian mixtures, and the exact spread of solver trajectories on Gaussian data.

Known answers for tests and experiments: where the score is exact, what a sampler misses is its own error.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The data distribution `Σ_k w_k N(μ_k, Σ_k)` in D dimensions.

    Attributes:
        weights: (K,), positive, of sum 1.
        means: (K, D).
        covariances: (K, D, D), symmetric positive semi-definite; zero makes the component a point.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        K, D = self.means.shape
        if self.weights.shape != (K,) or self.covariances.shape != (K, D, D):
            raise InputError(f"weights must be ({K},) and covariances ({K}, {D}, {D}) for means ({K}, {D})")
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise InputError(f"weights must be positive and sum to 1, got {self.weights.tolist()}")

    def _components(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return per component the log of weight times density, (B, K), and its score, (B, K, D)."""
        alpha = torch.as_tensor(level.alpha, dtype=torch.float64).reshape(-1, 1, 1)
        variance = torch.as_tensor(level.sigma, dtype=torch.float64).reshape(-1, 1, 1, 1) ** 2
        identity = torch.eye(self.means.shape[1], dtype=torch.float64)
        covariance = alpha.unsqueeze(-1) ** 2 * self.covariances.double() + variance * identity
        factor = torch.linalg.cholesky(covariance)
        away = (alpha * self.means.double() - x.double().unsqueeze(1)).unsqueeze(-1)
        score = torch.cholesky_solve(away, factor.expand(*away.shape[:-2], -1, -1)).squeeze(-1)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        quadratic = (away.squeeze(-1) * score).sum(-1)
        constant = self.means.shape[1] * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return self.weights.double().log() - 0.5 * (quadratic + log_det + constant), score

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """Return the log-density of the noised data at x (B, D), float64, (B,); level scalar or (B,)."""
        return torch.logsumexp(self._components(x, level)[0], 1)

    def score(self, x: Tensor, level: Level) -> Tensor:
        """Return `∇ log p_t(x) = Σ_k r_k Σ_{k,t}^{-1} (α μ_k − x)` at x (B, D), float64, (B, D)."""
        logits, score = self._components(x, level)
        return (torch.softmax(logits, 1).unsqueeze(-1) * score).sum(1)

    def epsilon(self, x: Tensor, level: Level) -> Tensor:
        """Return the exact noise prediction `E[ε | x] = −σ ∇ log p_t(x)`, float64, (B, D)."""
        return -torch.as_tensor(level.sigma, dtype=torch.float64).reshape(-1, 1) * self.score(x, level)

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """Return the exact denoiser `E[x_0 | x] = (x + σ² ∇ log p_t(x)) / α` (Tweedie), float64, (B, D)."""
        alpha, sigma = (torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1) for c in level)
        return (x.double() + sigma**2 * self.score(x, level)) / alpha

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return n clean samples, float64, (n, D)."""
        which = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        values, vectors = torch.linalg.eigh(self.covariances.double())
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
        normal = torch.randn(n, self.means.shape[1], 1, dtype=torch.float64, generator=generator)
        return self.means.double()[which] + (root[which] @ normal).squeeze(-1)


def gaussian(mean: Tensor, covariance: Tensor) -> GaussianMixture:
    """Return the one-component mixture N(mean, covariance); shapes (D,) and (D, D)."""
    return GaussianMixture(torch.ones(1, dtype=torch.float64), mean.unsqueeze(0), covariance.unsqueeze(0))


def ddim_gain(data_std: float, level: Level, next_level: Level) -> Tensor:
    """Return the factor by which a DDIM step scales x, for data N(0, data_std²) and the exact score.

    `x_0 = α c² x / v`, `ε = σ x / v` with `v = α² c² + σ²`, so the step is linear: `(α α_s c² + σ σ_s) / v`.
    The exact probability flow scales by `√(v_s/v)`.
    """
    variance = level.alpha**2 * data_std**2 + level.sigma**2
    return (level.alpha * next_level.alpha * data_std**2 + level.sigma * next_level.sigma) / variance


def flow_gain(data_std: float, level: Level, next_level: Level) -> Tensor:
    """Return the factor of the exact probability flow on N(0, data_std²), `√(v_s/v)`."""
    variance = level.alpha**2 * data_std**2 + level.sigma**2
    return ((next_level.alpha**2 * data_std**2 + next_level.sigma**2) / variance).sqrt()


def ancestral_variance(data_std: float, levels: list[Level]) -> Tensor:
    """Return the variance after DDPM steps through falling `levels`, for data N(0, data_std²), exact score.

    The run starts from the true marginal at `levels[0]`; the recursion is `V ← g² V + std²`, with g the gain
    of the posterior mean.
    """
    first = levels[0]
    V = first.alpha**2 * data_std**2 + first.sigma**2
    for level, low in pairwise(levels):
        ratio = level.alpha / low.alpha
        beta = 1 - ratio**2
        shrink = level.alpha * data_std**2 / (level.alpha**2 * data_std**2 + level.sigma**2)
        gain = (low.alpha * beta * shrink + ratio * low.sigma**2) / level.sigma**2
        V = gain**2 * V + beta * low.sigma**2 / level.sigma**2
    return V
