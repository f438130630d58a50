"""Laws of data whose noised density and score are known exactly (section 3): what estimates are compared with.

Each law has `log_prob(x, t)`, `score(x, t)` and `sample(n, generator)`; x is (B, D) float64, t a number. Gaussian
mixtures come from the core (`Mixture` sets them in the time of the process).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from noiseworks.core.closed_form import GaussianMixture, gaussian
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.diffusion_theory.process import level, noised, tweedie
from torch import Tensor

CHUNK = 1024  # atoms at a time: the memory of an empirical score is B x CHUNK
_ORTHONORMAL = 1e-6


class Law(Protocol):
    """What every law offers."""

    def score(self, x: Tensor, t: float) -> Tensor:
        """Return the score of the noised law, (B, D)."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n clean samples, (n, D)."""


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture of the core in the process's time.

    Attributes:
        data: The mixture.
    """

    data: GaussianMixture

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Return log p_t at x, (B,)."""
        return self.data.log_prob(x, level(t))

    def score(self, x: Tensor, t: float) -> Tensor:
        """Return the score of p_t at x, (B, D)."""
        return self.data.score(x, level(t))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n clean samples, (n, D)."""
        return self.data.sample(n, generator=generator)


def standard(d: int) -> Mixture:
    """Return N(0, I_d)."""
    eye = torch.eye(d, dtype=torch.float64)
    return Mixture(gaussian(eye.new_zeros(d), eye))


@dataclass(frozen=True)
class Cube:
    """The uniform law on [-w, w]^d, whose noised score is a ratio of Gaussian densities and distribution functions.

    Attributes:
        d: Dimension.
        half: Half a side w; the default has variance 1.
    """

    d: int
    half: float = math.sqrt(3)

    def _edges(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = level(t)
        low, high = (x - alpha * self.half) / sigma, (x + alpha * self.half) / sigma
        # Where both edges lie on one side, the mirrored tail keeps the difference of distribution functions exact.
        flip = low > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        mass = torch.special.log_ndtr(high) + torch.log1p(
            -torch.exp(torch.special.log_ndtr(low) - torch.special.log_ndtr(high))
        )
        return low, high, torch.where(flip, -1.0, 1.0).to(x), mass

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Return log p_t at x, (B,)."""
        alpha = level(t).alpha
        return (self._edges(x, t)[3] - torch.log(2 * alpha * self.half)).sum(1)

    def score(self, x: Tensor, t: float) -> Tensor:
        """Return the score of p_t at x, (B, d)."""
        low, high, sign, mass = self._edges(x, t)
        top, bottom = (torch.exp(-(edge**2) / 2 - mass) for edge in (high, low))
        return sign * (top - bottom) / (math.sqrt(2 * math.pi) * level(t).sigma)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n clean samples, (n, d)."""
        drawn = torch.rand(n, self.d, dtype=torch.float64, generator=generator)
        return (2 * drawn - 1) * self.half


@dataclass(frozen=True)
class Subspace:
    """Data x = A z on a linear subspace; nothing of size D x D is formed (section 3.2).

    Attributes:
        basis: A, (D, d) with orthonormal columns.
        latent: The law of z.

    Raises:
        InputError: When the columns are not orthonormal to 1e-6.
    """

    basis: Tensor
    latent: Law

    def __post_init__(self) -> None:
        gram = self.basis.T @ self.basis
        off = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())
        if not off <= _ORTHONORMAL:
            raise InputError(f"the basis must have orthonormal columns, they are off by {off:.3g}")

    def score(self, x: Tensor, t: float) -> Tensor:
        """Return `A s_z(A^T x) - (x - A A^T x) / h`: bounded on the support, of order 1/h off it; (B, D)."""
        z = x @ self.basis
        rest = x - z @ self.basis.T
        return self.latent.score(z, t) @ self.basis.T - rest / level(t).sigma ** 2

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Return log p_t at x, (B,)."""
        z = x @ self.basis
        variance = level(t).sigma ** 2
        rest = (x - z @ self.basis.T).square().sum(1) / variance
        free = self.basis.shape[0] - self.basis.shape[1]
        return self.latent.log_prob(z, t) - 0.5 * (rest + free * torch.log(2 * math.pi * variance))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n clean samples, (n, D)."""
        return self.latent.sample(n, generator) @ self.basis.T


def random_basis(D: int, d: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a (D, d) matrix with orthonormal columns, uniform over subspaces.

    Raises:
        InputError: Unless 1 <= d <= D.
    """
    if not 1 <= d <= D:
        raise InputError(f"d must be from 1 to D = {D}, got {d}")
    return torch.linalg.qr(torch.randn(D, d, dtype=torch.float64, generator=generator))[0]


@dataclass(frozen=True)
class Empirical:
    """The law of n points: its score minimises the training objective exactly, and memorises (section 3.1).

    `s_n(x, t) = (a Σ_i w_i x_i - x) / h` with `w = softmax(-|x - a x_i|² / 2h)`, streamed over atoms.

    Attributes:
        points: (n, D) float64.

    Raises:
        InputError: When there are no points, or they are not finite.
    """

    points: Tensor

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or not len(self.points) or not bool(self.points.isfinite().all()):
            raise InputError(
                f"points must be one or more finite rows (n, D), got shape {tuple(self.points.shape)}"
            )

    def _stream(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return per row: largest logit, sum of exp, weighted sum of atoms, sum of squared weights, unnormalised."""
        alpha, sigma = level(t)
        top = x.new_full((len(x), 1), -math.inf)
        total, squares = x.new_zeros(len(x), 1), x.new_zeros(len(x), 1)
        mean = torch.zeros_like(x)
        own = x.square().sum(1, keepdim=True)
        for atoms in self.points.split(CHUNK):
            near = alpha * atoms
            distance = torch.addmm(own, x, near.T, alpha=-2) + near.square().sum(1)  # |x - a x_i|²
            logits = distance.clamp(min=0) / (-2 * sigma**2)
            largest = torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = torch.exp(top - largest)
            weights = (logits - largest).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            squares = squares * shrink**2 + weights.square().sum(1, keepdim=True)
            mean = torch.addmm(mean * shrink, weights, atoms)
            top = largest
        return top, total, mean, squares

    def denoise(self, x: Tensor, t: float) -> Tensor:
        """Return E[X_0 | X_t = x], an average of the points, (B, D)."""
        _, total, mean, _ = self._stream(x, t)
        return mean / total

    def score(self, x: Tensor, t: float) -> Tensor:
        """Return the score of the noised law at x, (B, D)."""
        alpha, sigma = level(t)
        return (alpha * self.denoise(x, t) - x) / sigma**2

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Return log p_t at x, (B,)."""
        top, total, _, _ = self._stream(x, t)
        D = self.points.shape[1]
        variance = level(t).sigma ** 2
        return (
            (top + total.log()).squeeze(1)
            - 0.5 * D * torch.log(2 * math.pi * variance)
            - math.log(len(self.points))
        )

    def effective_atoms(self, x: Tensor, t: float) -> Tensor:
        """Return 1 / Σ w², how many points share a denoised x: near 1, the score points at a single one; (B,)."""
        _, total, _, squares = self._stream(x, t)
        return (total**2 / squares).squeeze(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n of the points, drawn with replacement, (n, D)."""
        return self.points[torch.randint(len(self.points), (n,), generator=generator)]


def draw(law: Law, n: int, t: float, generator: torch.Generator | None = None) -> Tensor:
    """Return n draws of p_t, (n, D)."""
    return noised(law.sample(n, generator), t, generator)


def posterior_mean(law: Law, x: Tensor, t: float) -> Tensor:
    """Return Tweedie's E[X_0 | X_t = x] of a law, (B, D)."""
    return tweedie(x, law.score(x, t), t)


def stream(seed: int, *parts: int) -> torch.Generator:
    """Return the random numbers of one part of an experiment."""
    return torch.Generator().manual_seed(mix64(seed, *parts) >> 1)
