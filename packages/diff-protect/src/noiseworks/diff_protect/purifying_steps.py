"""Diff-PGD: the gradient is taken at the image after a weak denoising, so that the change survives one.

Source: Diff-PGD, arXiv 2305.16494, a hook of Diff-Protect's released code that is off by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from noiseworks.kits.protection.editors import denoise_from
from noiseworks.kits.protection.engine import Gradient
from noiseworks.kits.protection.hosts import Host
from torch import Tensor


@dataclass
class Purified:
    """An objective whose gradient is taken at the denoised image and applied to the image itself.

    Attributes:
        host: The pipeline.
        gradient: The objective.
        share: How far along the schedule the image is noised.
    """

    host: Host
    gradient: Gradient
    share: float = 0.2

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient at the denoised images, and the objective there."""
        with torch.no_grad():
            denoised = denoise_from(self.host, images, self.share, generators)
        return self.gradient(denoised, generators)
