"""The success classifier (section 3.3): which latents are a success, learned from real and imagined ones."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.diwa.options import RewardFit
from torch import Tensor, nn

KIND, CROSS_ENTROPY = "diwa/success", 0.5


class SuccessClassifier(nn.Module):
    """Encoder and classifier on features.

    Args:
        features: Width of a feature.
        width: Width of the hidden layers; the code has a quarter of it.
    """

    def __init__(self, features: int, width: int = 1024) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.encoder = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width // 4))
        self.head = nn.Sequential(nn.Linear(width // 4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits of failure and success [B, 2]."""
        return self.head(self.encoder(feature))

    @torch.no_grad()
    def success(self, feature: Tensor) -> Tensor:
        """Return which features are a success, bool [B]."""
        return self(feature).argmax(-1) == 1

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        save_artifact(path, KIND, {"features": self.features, "width": self.width}, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "SuccessClassifier":
        """Read a classifier that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        config, tensors = load_artifact(path, KIND)
        with rebuilding(path, "whole classifier"):
            made = cls(config["features"], config["width"])
            made.load_state_dict({name: t.float() for name, t in tensors.items()})
        return made.eval().requires_grad_(False)


def contrastive_loss(codes: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the supervised NT-Xent loss (Khosla et al. 2020) as released.

    The denominator leaves the code itself out; the mean over codes of the same label does not.

    Args:
        codes: [B, D].
        labels: [B].
        temperature: Of the cosines.
    """
    codes = F.normalize(codes, dim=-1)
    logits = codes @ codes.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    same = (labels[:, None] == labels[None]).to(codes)
    return -((same * log_prob).sum(1) / same.sum(1)).mean()


class Figures(NamedTuple):
    """How well a classifier tells successes.

    Attributes:
        precision: Share of what it calls a success that is one; 0 where it calls nothing so.
        recall: Share of the successes that it finds; 0 where there is none.
    """

    precision: float
    recall: float


def figures(classifier: SuccessClassifier, features: Tensor, labels: Tensor) -> Figures:
    """Return precision and recall on features [B, F] with labels bool [B]."""
    found = classifier.success(features)
    right = float((found & labels).sum())
    return Figures(right / max(float(found.sum()), 1.0), right / max(float(labels.sum()), 1.0))


def balance(features: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return as many features of either label, all of the rarer one.

    Raises:
        InputError: When there is no success or no failure.
    """
    rows = [torch.nonzero(labels == which)[:, 0] for which in (False, True)]
    count = min(map(len, rows))
    if not count:
        raise InputError(
            f"the demonstrations hold no {'failure' if not len(rows[0]) else 'success'}: a classifier needs both"
        )
    kept = torch.cat([one[torch.randperm(len(one), generator=generator)[:count]] for one in rows])
    return features[kept], labels[kept]


def fit_classifier(features: Tensor, labels: Tensor, options: RewardFit) -> SuccessClassifier:
    """Return a classifier of latents.

    Args:
        features: Of real and imagined latents, [B, F].
        labels: Successes, bool [B].
        options: Sizes and length.

    Raises:
        InputError: When there is no success or no failure.
        NonFiniteError: When the loss is not finite.
    """
    generator = torch.Generator().manual_seed(options.reward_seed)
    features, labels = balance(features, labels, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.reward_seed)
        made = SuccessClassifier(features.shape[1], options.reward_width)
    optimizer = torch.optim.Adam(made.parameters(), options.reward_rate)
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(options.reward_batch):
            codes, target = made.encoder(features[rows]), labels[rows].long()
            loss = contrastive_loss(codes, target, options.temperature)
            loss = loss + CROSS_ENTROPY * F.cross_entropy(made.head(codes), target)
            check_finite("classifier loss", loss.detach(), epoch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return made.eval().requires_grad_(False)
