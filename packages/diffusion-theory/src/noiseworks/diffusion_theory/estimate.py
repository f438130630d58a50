"""Scores estimated from data (section 3): a linear network, ridge, a small network; the kernel is `Empirical`.

And what the data themselves say: their subspace and their intrinsic dimension.
"""

import math
from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.diffusion_theory.process import level, noised
from torch import Tensor, nn


def leading_subspace(samples: Tensor, d: int) -> Tensor:
    """Return the d leading eigenvectors of the samples' second moment, (D, d).

    Of noised samples this is the optimum of the linear network with encoder V and skip -x/h (section 3.2): its
    decoder is Vᵀ.

    Raises:
        InputError: Unless 1 <= d <= D and there are at least d samples.
    """
    n, D = samples.shape
    if not 1 <= d <= min(n, D):
        raise InputError(f"d must be from 1 to {min(n, D)} for {n} samples of {D} numbers, got {d}")
    return torch.linalg.eigh(samples.T @ samples / n)[1][:, -d:]


def subspace_error(found: Tensor, true: Tensor) -> float:
    """Return |V Vᵀ - A Aᵀ|_F² of two orthonormal bases (D, d)."""
    return 2 * (true.shape[1] - float((found.T @ true).square().sum()))


def subspace_error_expected(n: int, d: int, D: int, t: float) -> float:
    """Return the leading order of that error for latents N(0, I) seen at time t: `2 d (D - d) h / ((1 - h)² n)`."""
    h = float(level(t).sigma) ** 2
    return 2 * d * (D - d) * h / ((1 - h) ** 2 * n)


def linear_score_error(samples: Tensor, basis: Tensor, t: float) -> float:
    """Return E|ŝ - s|² under p_t of the linear estimate from noised samples of A z, z ~ N(0, I); exact, no sampling.

    ŝ has the estimated subspace and its variances on it, and the known -x/h off it.
    """
    h = float(level(t).sigma) ** 2
    D, d = basis.shape
    V = leading_subspace(samples, d)
    inside = torch.linalg.inv(V.T @ (samples.T @ samples / len(samples)) @ V)
    eye = torch.eye(D, dtype=samples.dtype)
    found = -(V @ inside @ V.T + (eye - V @ V.T) / h)
    support = basis @ basis.T
    gap = found + support + (eye - support) / h
    law = support + h * (eye - support)
    return float(torch.trace(gap @ law @ gap.T))


@dataclass(frozen=True)
class RidgeScore:
    """A score that is linear in Gaussian bumps around centres, fitted by ridge regression (section 3.1); one time.

    Attributes:
        centers: (K, D).
        weights: (K, D).
        width: Of a bump.
        t: The time.
    """

    centers: Tensor
    weights: Tensor
    width: float
    t: float

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the score at x, (B, D), with the exact part -x / h taken out of the regression."""
        return _bumps(x, self.centers, self.width) @ self.weights - x / level(self.t).sigma ** 2


def fit_ridge(
    data: Tensor,
    t: float,
    generator: torch.Generator,
    *,
    centers: int = 200,
    penalty: float = 1e-3,
    draws: int = 4,
) -> RidgeScore:
    """Fit the score at one time by denoising score matching, which is least squares here.

    Args:
        data: (n, D).
        t: The time.
        generator: Of the noise.
        centers: Bumps, at most n.
        penalty: Of ridge, relative to the number of rows.
        draws: Noised copies of each point.
    """
    check_number("penalty", penalty, low=0, low_open=True)
    alpha, sigma = level(t)
    clean = data.repeat(draws, 1)
    x = noised(clean, t, generator)
    middle = noised(data[torch.randperm(len(data), generator=generator)[:centers]], t, generator)
    width = float(torch.cdist(middle[:100], middle).median()) or 1.0
    features = _bumps(x, middle, width)
    target = alpha * clean / sigma**2  # E[target | x] = s + x / h
    gram = features.T @ features + penalty * len(x) * torch.eye(len(middle), dtype=x.dtype)
    weights = torch.cholesky_solve(features.T @ target, torch.linalg.cholesky(gram))
    return RidgeScore(middle, weights, width, t)


def _bumps(x: Tensor, centers: Tensor, width: float) -> Tensor:
    return torch.exp(-torch.cdist(x, centers).square() / (2 * width**2))


class NetworkScore(nn.Module):
    """The survey's network of section 3.2 at one time: encoder V to d numbers, an MLP, decoder Vᵀ, skip -x/h.

    Args:
        D: Dimension of the data.
        d: Of the latent.
        width: Of the two hidden layers.
        t: The time.
    """

    def __init__(self, D: int, d: int, width: int, t: float) -> None:
        super().__init__()
        self.t = t
        self.encoder = nn.Linear(D, d, bias=False)
        nn.init.orthogonal_(self.encoder.weight)
        layers = (nn.Linear(d, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, d))
        self.inner = nn.Sequential(*layers)
        self.double()

    def forward(self, x: Tensor, t: float | None = None) -> Tensor:
        """Return the score (B, D)."""
        h = level(self.t).sigma ** 2
        return (self.inner(self.encoder(x)) @ self.encoder.weight - x) / h


def fit_network(data: Tensor, t: float, d: int, width: int, steps: int, seed: int) -> NetworkScore:
    """Train the network by denoising score matching, with the weights of the best held-out loss (a tenth of the data).

    Args:
        data: (n, D).
        t: The time.
        d: Latent dimension.
        width: Hidden width.
        steps: Of Adam, with batches of 256.
        seed: Of the weights and noise.
    """
    alpha, sigma = level(t)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NetworkScore(data.shape[1], d, width, t)
    held, train = data[: max(1, len(data) // 10)].repeat(8, 1), data[len(data) // 10 :]
    seen = noised(held, t, generator)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    best, kept = math.inf, {name: p.clone() for name, p in network.state_dict().items()}
    for index in range(steps):
        clean = train[torch.randint(len(train), (256,), generator=generator)]
        x = noised(clean, t, generator)
        loss = (sigma**2 * network(x) - (alpha * clean - x)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if index % 25 == 24 or index == steps - 1:
            with torch.no_grad():
                now = float((sigma**2 * network(seen) - (alpha * held - seen)).square().sum(1).mean())
            if now < best:
                best, kept = now, {name: p.clone() for name, p in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.requires_grad_(False)


def two_nearest_dimension(samples: Tensor, keep: float = 0.9) -> float:
    """Return the intrinsic dimension by two nearest neighbours (Facco et al. 2017, arXiv 1803.06992).

    The ratio of the distances to the second and first neighbour is Pareto with exponent d; the largest ratios are left
    out and counted as censored.

    Args:
        samples: (n, D), distinct.
        keep: Share of the ratios that is used.

    Raises:
        InputError: When fewer than 3 samples are distinct.
    """
    ratios = []
    for rows in samples.split(512):
        near = torch.cdist(rows, samples, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = near.topk(min(3, len(samples)), largest=False).values
        if nearest.shape[1] == 3:
            ratios.append((nearest[:, 2] / nearest[:, 1])[nearest[:, 1] > 0])
    mu = torch.cat(ratios) if ratios else samples.new_zeros(0)
    if len(mu) < 3 or float(mu.max()) <= 1:
        raise InputError("the intrinsic dimension needs at least 3 distinct samples; remove the duplicates")
    logs = mu.log().sort().values
    used = max(1, int(keep * len(logs)))
    return used / float(logs[:used].sum() + (len(logs) - used) * logs[used - 1])
