"""Distances of sets of images in the features of a small classifier that is trained in place.

They compare models that saw the same data in one study, and nothing else: they are no Inception scores.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from torch import Tensor, nn


@dataclass
class Moments:
    """Count, mean and scatter of rows, added up batch by batch in float64 (Chan et al. 1983).

    Attributes:
        count: Rows so far.
        mean: (d,).
        scatter: Sum of the outer products of deviations, (d, d).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Return the moments of rows (n, d), n at least 1."""
        rows = rows.double()
        mean = rows.mean(0)
        away = rows - mean
        return cls(len(rows), mean, away.T @ away)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of rows together."""
        count = self.count + other.count
        away = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter = scatter + torch.outer(away, away) * (self.count * other.count / count)
        return Moments(count, self.mean + away * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (d, d).

        Raises:
            InputError: With fewer rows than dimensions, where it has no inverse.
        """
        if self.count <= len(self.mean):
            raise InputError(
                f"a covariance in {len(self.mean)} dimensions needs more than as many samples, got {self.count}"
            )
        return self.scatter / (self.count - 1)


def gaussian_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return `|μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½)`; the root's trace is the sum of roots of eigenvalues."""
    eigenvalues = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0)
    spread = cov1.trace() + cov2.trace() - 2 * eigenvalues.sqrt().sum()
    return float((mean1 - mean2).square().sum() + spread)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the Frechet distance of two sets of features, at least 0 up to rounding (Heusel et al. 2017).

    Raises:
        InputError: With fewer samples than dimensions in one of them.
    """
    return gaussian_distance(first.mean, first.covariance, second.mean, second.covariance)


def classifier_score(probs: Tensor, splits: int = 10) -> float:
    """Return `exp(mean KL(p(y|x) || p(y)))`, the mean over splits (Salimans et al. 2016), 1 to K.

    Args:
        probs: (n, K), rows of sum 1.
        splits: Parts of the rows, in order; at most n.
    """
    scores = []
    for part in probs.double().chunk(splits):
        marginal = part.mean(0, keepdim=True)
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)
        scores.append(divergence.sum(1).mean().exp())
    return float(torch.stack(scores).mean())


class FeatureNet(nn.Module):
    """Three convolutions, their mean over places, 64 features and a classifier.

    Args:
        channels: Of the images.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=1 if a == channels else 2, padding=1), nn.GELU())
                for a, b in pairwise(widths)
            )
        )
        self.penultimate, self.head = nn.Linear(128, 64), nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 64) of images (B, C, H, W) in [-1, 1]."""
        return F.gelu(self.penultimate(self.stages(images).mean((2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def moments(self, images: Tensor, batch_size: int = 512) -> Moments:
        """Return the moments of the features of images, batch by batch."""
        parts = [Moments.of(self.features(part)) for part in images.split(batch_size)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def fit_features(images: Tensor, labels: Tensor, *, steps: int = 400, seed: int = 0) -> FeatureNet:
    """Return a classifier of labelled images, trained with a little noise and shifts of one pixel.

    Args:
        images: (n, C, H, W) in [-1, 1].
        labels: (n,).
        steps: Batches of 128.
        seed: Of weights and batches; the same seed gives the same features.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureNet(images.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (min(128, len(images)),))
            moved = images[rows].roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))
            loss = F.cross_entropy(net(moved + 0.1 * torch.randn_like(moved)), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)
