"""Guidance (sections 2.3 and 5): towards a class of a mixture, and along the gradient of a reward."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from noiseworks.core.checks import check_number
from noiseworks.diffusion_theory.laws import Mixture
from noiseworks.diffusion_theory.process import level, tweedie
from noiseworks.diffusion_theory.samplers import Score
from torch import Tensor


def guided(conditional: Score, unconditional: Score, eta: Tensor | float) -> Score:
    """Return `(1 + η) s(x, t | y) - η s(x, t)`; the other common weight is w = 1 + η.

    Args:
        conditional: The score given the class.
        unconditional: The score.
        eta: Strength, a number of at least -1 (-1 the unconditional, 0 the conditional score) or (B, 1).

    Raises:
        InputError: On a strength below -1.
    """
    check_number("eta", float(torch.as_tensor(eta).min()), low=-1)

    def score(x: Tensor, t: float) -> Tensor:
        return (1 + eta) * conditional(x, t) - eta * unconditional(x, t)

    return score


@dataclass(frozen=True)
class LineMixture:
    """A mixture of unit Gaussians on a line, whose components are the classes (section 5.1).

    Attributes:
        means: (K,).
        target: The class that is asked for.
    """

    means: Tensor
    target: int

    def log_posterior(self, x: Tensor, t: float) -> Tensor:
        """Return log p(y | X_t = x), in x's shape."""
        alpha = level(t).alpha if t > 0 else 1.0
        logits = -0.5 * (x[..., None] - alpha * self.means.double()) ** 2
        return torch.log_softmax(logits, -1)[..., self.target]

    def pull(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return d/dx log p(y | X_t = x), and its own derivative, in x's shape."""
        alpha = level(t).alpha
        means = alpha * self.means.double()
        shares = torch.softmax(x[..., None] * means - means**2 / 2, -1)
        mean = (shares * means).sum(-1)
        return means[self.target] - mean, mean**2 - (shares * means**2).sum(-1)

    def run(
        self, x: Tensor, times: Tensor, eta: Tensor, noise: Callable[[], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ends (B, K) of one start for each strength, and the log-derivative of the map, (B, K).

        Args:
            x: Starts, (B,).
            times: Falling.
            eta: Strengths, (K,).
            noise: Draws (B, 1) standard normal numbers, shared by all strengths, for the SDE; None for the flow.
        """
        x = x[:, None].expand(-1, len(eta)).clone()
        stretch = torch.zeros_like(x)
        for t, low in pairwise(times.tolist()):
            delta, (force, slope) = t - low, self.pull(x, t)
            score = level(t).alpha * self.means[self.target] - x + eta * force  # p_t(x | y) = N(a μ, 1)
            if noise is None:
                drift, slope = (x + score) / 2, eta * slope / 2
                x = x + delta * drift
            else:
                drift, slope = x / 2 + score, eta * slope - 0.5
                x = x + delta * drift + delta**0.5 * noise()
            stretch = stretch + torch.log((1 + delta * slope).abs())
        return x, stretch


def splitting_threshold(mu: float, delta: float) -> float:
    """Return the strength beyond which a discretised SDE splits the centre of components at 0 and ±μ (section 5.3).

    At the end the centre is unstable once `η > (2/δ - ½)/κ`, with `κ = μ² 2e^{-μ²/2} / (1 + 2e^{-μ²/2})`.
    """
    tails = 2 * math.exp(-(mu**2) / 2)
    return (2 / delta - 0.5) * (1 + tails) / (mu**2 * tails)


def reward_pull(
    score: Score,
    gradient: Tensor,
    value: Tensor,
    kind: Literal["naive", "lookahead"],
    noise: float = 0.1,
) -> Score:
    """Return a score with gradient guidance towards `g^T x = y` (Guo et al. 2024, arXiv 2404.14743).

    naive: `β (y - g^T E[x_0|x_t]) g` with `β = a / (σ² + h |g|²)`. lookahead: `-β ∇ (y - g^T E[x_0|x_t])²` with
    `β = (a²/2) / (a² σ² + h |∇ g^T E[x_0|x_t]|²)`, which stays on the support, as the denoiser's Jacobian maps there.

    Args:
        score: The unguided score, differentiable.
        gradient: g of each sample, (B, D).
        value: y of each sample, (B,).
        kind: Which of the two.
        noise: σ of the labels.
    """

    def guided_score(x: Tensor, t: float) -> Tensor:
        alpha, sigma = level(t)
        h = sigma**2
        if kind == "naive":
            plain = score(x, t)
            short = value - (gradient * tweedie(x, plain, t)).sum(1)
            beta = alpha / (noise**2 + h * gradient.square().sum(1))
            return plain + (beta * short)[:, None] * gradient
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            plain = score(x, t)
            reached = (gradient * tweedie(x, plain, t)).sum(1)
            (ahead,) = torch.autograd.grad(reached.sum(), x)
        beta = alpha**2 / (alpha**2 * noise**2 + h * ahead.square().sum(1))
        return plain.detach() + (beta * (value - reached.detach()))[:, None] * ahead

    return guided_score


def condition(mixture: Mixture, component: int) -> Mixture:
    """Return the law of one component of a mixture."""
    data, chosen = mixture.data, slice(component, component + 1)
    return Mixture(
        type(data)(torch.ones_like(data.weights[chosen]), data.means[chosen], data.covariances[chosen])
    )
