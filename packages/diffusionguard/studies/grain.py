"""Would a first stage that passes fine grain give DiffusionGuard a hold on the testbed? The claim's arms under one.

    python packages/diffusionguard/studies/grain.py --gain 6 --images 6 --steps 24

First stages of photographs code grain that flat shapes do not have. Here the shipped encoder is given what such a one
would add: z(x) + gain C (x - original), with C four orthonormal patterns of zero mean on the 4x4 pixels of a latent.
The editor, its noise and the masks are the claim's, on a tuning seed. Printed for each defence: the norm of the noise
predicted at the first step relative to the original's, the edits that fail, and the grain's share of the latents.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.claims import Context
from noiseworks.diffusionguard.evidence import edit_originals, measure
from noiseworks.kits.protection.files import to_tensor
from torch import Tensor, nn

SEED = 100  # below 1000: a measurement, not a judgement
FIGURES = ("norm_ratio", "seen", "unseen")


def patterns() -> Tensor:
    """Return four orthonormal patterns whose mean is zero in every colour, [4, 3, 4, 4]."""
    drawn = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    drawn = drawn - drawn.mean(dim=2, keepdim=True)
    return torch.linalg.qr(drawn.flatten(1).T)[0].T.reshape(4, 3, 4, 4)


class Posterior(SimpleNamespace):
    """A normal distribution, as pipelines draw from it."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a draw [B, 4, h, w]."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


class GrainEncoder:
    """An encoder whose latents also show in what an image differs from its original.

    Args:
        vae: First stage whose latents have a quarter of the side.
        originals: The images as they were, [n, 3, H, W] in [-1, 1].
        gain: Of the patterns, in scaled latents.
    """

    def __init__(self, vae: nn.Module, originals: Tensor, gain: float) -> None:
        self.encode, self.originals, self.weight = vae.encode, originals, patterns()
        self.gain, self.share = gain / vae.config.scaling_factor, 0.0

    def __call__(self, images: Tensor) -> SimpleNamespace:
        """Return the posterior of images [B, 3, H, W], which are exactly 0 where a mask repaints."""
        found = self.encode(images).latent_dist
        kept = (images != 0).any(dim=1, keepdim=True)
        apart = (images.detach()[:, None] - self.originals[None]).abs() * kept[:, None]
        nearest = self.originals[apart.flatten(2).sum(dim=2).argmin(dim=1)]
        added = self.gain * F.conv2d((images - nearest) * kept, self.weight, stride=4)
        shares = added.detach().flatten(1).norm(dim=1) / found.mean.detach().flatten(1).norm(dim=1)
        self.share = float(shares.mean())
        return SimpleNamespace(latent_dist=Posterior(mean=found.mean + added, std=found.std))


def main(arguments: list[str] | None = None) -> None:
    """Run the arms and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gain", type=float, default=6.0)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--edit-steps", type=int, default=10)
    parser.add_argument("--arms", nargs="+", default=["random", "photoguard", "diffusionguard"])
    options = parser.parse_args(arguments)
    settings = {"images": options.images, "steps": options.steps, "pool": 8, "purifiers": 0}
    settings["edit_steps"] = options.edit_steps
    with TemporaryDirectory() as folder:
        context = Context("laptop", settings, None, "cpu", Path(folder), lambda *text: None)
        shared = edit_originals(SEED, context)
        plain = shared.pipe.vae.encode
        encoder = GrainEncoder(shared.pipe.vae, 2 * to_tensor(shared.pixels) - 1, options.gain)
        shared.pipe.vae.encode = encoder
        try:
            for arm in options.arms:
                metrics = measure(arm, shared, context).metrics
                means = {name: round(float(np.mean(metrics[name])), 4) for name in FIGURES}
                print(json.dumps({"arm": arm, **means, "grain": round(encoder.share, 3)}), flush=True)
        finally:
            shared.pipe.vae.encode = plain


if __name__ == "__main__":
    main()
