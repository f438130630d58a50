"""Black-box optimisation by conditional sampling (section 6): labels, pseudo-labels, a conditional law, proposals."""

from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from torch import Tensor


def ridge(x: Tensor, y: Tensor, penalty: float = 1.0) -> Tensor:
    """Return `θ̂ = (XᵀX + λ I)^{-1} Xᵀ y`; x (..., n, d), y (..., n), result (..., d)."""
    check_number("penalty", penalty, low=0, low_open=True)
    gram = x.mT @ x + penalty * torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.cholesky_solve((x.mT @ y[..., None]), torch.linalg.cholesky(gram))[..., 0]


def conditional(
    covariance: Tensor, theta: Tensor, value: float | Tensor, label_noise: float
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of x ~ N(0, Σ) given the pseudo-label `θ̂ᵀx + N(0, ν²) = a`.

    Args:
        covariance: Σ, (d, d).
        theta: θ̂, (..., d).
        value: a.
        label_noise: ν.

    Returns:
        `Σ θ̂ a / (θ̂ᵀΣθ̂ + ν²)`, (..., d), and `Σ - Σθ̂θ̂ᵀΣ / (θ̂ᵀΣθ̂ + ν²)`, (..., d, d).
    """
    pushed = theta @ covariance
    total = (pushed * theta).sum(-1, keepdim=True) + label_noise**2
    return pushed * value / total, covariance - pushed[..., :, None] * pushed[..., None, :] / total[..., None]


def expected_gap(covariance: Tensor, theta: Tensor, true: Tensor, value: float, label_noise: float) -> Tensor:
    """Return SubOpt(a) = a - E[θ*ᵀx] of samples conditioned on the pseudo-label a, (...)."""
    return value - (conditional(covariance, theta, value, label_noise)[0] * true).sum(-1)


@dataclass(frozen=True)
class RewardDirected:
    """Proposals for a target reward from few labelled and many unlabelled points (algorithm 1 of section 6).

    Gaussian on the leading subspace of the unlabelled data, with ridge pseudo-labels: the conditional diffusion's
    own law in closed form. Proposals carry the noise of the early stop t_0 off the subspace, and nothing else.

    Attributes:
        center: (D,) mean of the unlabelled points.
        basis: (D, d).
        covariance: (d, d), of the latents.
        theta: (d,).
        offset: Mean label.
        label_noise: ν.
        spread: Standard deviation of the pseudo-labels.
    """

    center: Tensor
    basis: Tensor
    covariance: Tensor
    theta: Tensor
    offset: float
    label_noise: float
    spread: float

    @classmethod
    def fit(
        cls,
        x: Tensor,
        y: Tensor,
        unlabelled: Tensor,
        *,
        d: int,
        penalty: float = 1.0,
        label_noise: float = 0.1,
    ) -> "RewardDirected":
        """Fit labels and law.

        Args:
            x: (n1, D) labelled points.
            y: (n1,) their rewards.
            unlabelled: (n2, D); the labelled points may be among them.
            d: Dimension of the subspace.
            penalty: λ of ridge.
            label_noise: ν of the pseudo-labels.

        Raises:
            InputError: When shapes do not fit, or there are too few points.
        """
        if x.ndim != 2 or y.shape != x.shape[:1] or unlabelled.shape[1:] != x.shape[1:] or len(x) < 2:
            raise InputError(
                f"labelled points (n, D), rewards (n,) and unlabelled points (m, D) must fit, got "
                f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(unlabelled.shape)}"
            )
        check_number("label_noise", label_noise, low=0, low_open=True)
        from noiseworks.diffusion_theory.estimate import leading_subspace

        center = unlabelled.mean(0)
        basis = leading_subspace(unlabelled - center, d)
        latents = (unlabelled - center) @ basis
        offset = float(y.mean())
        theta = ridge((x - center) @ basis, y - offset, penalty)
        covariance = latents.T @ latents / len(latents)
        spread = float((theta @ covariance @ theta + label_noise**2).sqrt())
        return cls(center, basis, covariance, theta, offset, label_noise, spread)

    def propose(self, target: float, n: int, t0: float, generator: torch.Generator) -> Tensor:
        """Return n points for a target reward, (n, D)."""
        mean, covariance = conditional(self.covariance, self.theta, target - self.offset, self.label_noise)
        values, vectors = torch.linalg.eigh(covariance)
        normal = torch.randn(n, len(self.theta), dtype=mean.dtype, generator=generator)
        latents = mean + (normal * values.clamp(min=0).sqrt()) @ vectors.T
        away = torch.randn(n, len(self.center), dtype=mean.dtype, generator=generator)
        return self.center + latents @ self.basis.T + t0**0.5 * away

    def shift(self, target: float) -> float:
        """Return how many standard deviations of the pseudo-labels the target lies from their mean.

        The regret of the labels grows in proportion to it (distribution shift, section 6.2).
        """
        return abs(target - self.offset) / self.spread
