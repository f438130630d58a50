"""Randomised smoothing: a radius within which a noisy vote cannot change (Cohen et al. 2019, algorithm 1 and 2).

Any module that returns logits of images can be the base, in evaluation mode; noise is added to images in [0, 1] and
not clipped, which the guarantee needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.rrcm.options import Smoothing
from scipy.special import ndtri
from scipy.stats import beta, binomtest
from torch import Tensor, nn

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """What is known of one image.

    Attributes:
        label: The class, or -1 when the vote is too close.
        radius: Largest l2 change, beside images in [0, 1], that keeps the class; 0 when it abstains.
        probability: Lower bound of the class's probability under noise.
        counts: Votes of the n draws for the class.
        dtype: The precision in which the base voted; another one is another classifier.
    """

    label: int
    radius: float
    probability: float
    counts: int
    dtype: str


def lower_bound(count: int, total: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson bound Beta^{-1}(α; k, n - k + 1) of a probability, 0 when k = 0."""
    if count == 0:
        return 0.0
    if count == total:
        return math.exp(math.log(alpha) / total)
    return float(beta.ppf(alpha, count, total - count + 1))


def radius_of(probability: float, sigma: float) -> float:
    """Return σ Φ^{-1}(p), or 0 below one half."""
    return sigma * float(ndtri(probability)) if probability > 0.5 else 0.0


class SmoothedClassifier:
    """The class that a base classifier gives most often under noise of σ.

    Args:
        base: Noisy images (B, C, H, W) -> logits (B, K).
        classes: K.
        sigma: Noise beside images in [0, 1].
        smoothing: Draws, confidence and seed.

    Raises:
        InputError: When the base is in training mode or σ is not above 0.
    """

    def __init__(
        self, base: nn.Module, classes: int, sigma: float, smoothing: Smoothing = Smoothing()
    ) -> None:
        check_number("sigma", sigma, low=0, low_open=True)
        check_number("classes", classes, low=1, integer=True)
        if any(module.training for module in base.modules()):
            raise InputError("a base in training mode votes with its batch; call eval() first")
        self.base, self.classes, self.sigma, self.smoothing = base, classes, sigma, smoothing

    @torch.inference_mode()
    def votes(self, images: Tensor, ids: Sequence[int], first: int, draws: int) -> Tensor:
        """Return how often each class wins, int64 (B, K); it does not depend on how images and draws are batched.

        Args:
            images: (B, C, H, W) in [0, 1].
            ids: Number of each image, of which its noise depends.
            first: Number of the first draw.
            draws: Their count.

        Raises:
            InputError: On images outside [0, 1], or a base that returns something else.
            NonFiniteError: When a logit is not finite: NaN would count as class 0.
        """
        self._check(images)
        found = torch.zeros(len(images) * self.classes, dtype=torch.int64)
        total = len(images) * draws
        for start in range(0, total, self.smoothing.rows):
            stop = min(start + self.smoothing.rows, total)
            owner = torch.arange(start, stop) // draws
            keys = [
                SeedSpec(self.smoothing.seed, ids[image]).keys(
                    range(first + max(start - image * draws, 0), first + min(stop - image * draws, draws))
                )
                for image in range(start // draws, (stop - 1) // draws + 1)
            ]
            noise = normal(torch.cat(keys), images.shape[1:]).to(images)
            logits = self.base(images[owner] + self.sigma * noise)
            if logits.shape != (stop - start, self.classes):
                wanted = (stop - start, self.classes)
                raise InputError(f"the base must return logits {wanted}, got {tuple(logits.shape)}")
            if not bool(logits.isfinite().all()):
                raise NonFiniteError("the base returns logits that are not finite")
            chosen = owner * self.classes + logits.argmax(1).cpu()
            found += torch.bincount(chosen, minlength=len(found))
        return found.view(len(images), self.classes)

    def choose(self, images: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """Return the class of each image by the first n0 draws, the lowest on ties, (B,)."""
        return self.votes(images, range(len(images)) if ids is None else ids, 0, self.smoothing.n0).argmax(1)

    def certify(
        self, images: Tensor, ids: Sequence[int] | None = None, chosen: Tensor | None = None
    ) -> list[Certificate]:
        """Return a certificate of each image, right with a probability of 1 - α.

        Args:
            images: (B, C, H, W) in [0, 1].
            ids: Number of each image, by default its place.
            chosen: What `choose` returned, if it was called before.
        """
        s, ids = self.smoothing, range(len(images)) if ids is None else ids
        chosen = self.choose(images, ids) if chosen is None else chosen
        counts = self.votes(images, ids, s.n0, s.n).gather(1, chosen[:, None])[:, 0]
        made = []
        for label, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            bound = lower_bound(count, s.n, s.alpha)
            sure = bound > 0.5
            kind = str(images.dtype).removeprefix("torch.")
            made.append(
                Certificate(label if sure else ABSTAIN, radius_of(bound, self.sigma), bound, count, kind)
            )
        return made

    def predict(self, images: Tensor, ids: Sequence[int] | None = None) -> list[int]:
        """Return the class of each image without a radius, by a two-sided binomial test of the two leading classes.

        It is -1 where the vote is too close, and otherwise the smoothed classifier's class but for a chance of α.
        """
        s = self.smoothing
        votes = self.votes(images, range(len(images)) if ids is None else ids, 0, s.n)
        labels = []
        for row in votes:
            (first, second), order = (part.tolist() for part in row.topk(2))
            close = binomtest(first, first + second, 0.5).pvalue > s.alpha
            labels.append(ABSTAIN if close else order[0])
        return labels

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point() or images.ndim != 4:
            raise InputError(f"images must be floats (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"images must lie in [0, 1], where sigma is measured, got {low:g} to {high:g}")
