"""The vision transformer that is told its input's noise level, and classifiers made of it."""

from itertools import pairwise

import torch
from noiseworks.kits.backbones.options import Architecture
from noiseworks.kits.backbones.vit import ViT
from noiseworks.rrcm.options import Network
from noiseworks.rrcm.trajectory import input_scale, nearest_level, time_waves
from torch import Tensor, nn


class RrcmEncoder(ViT):
    """Noisy images and their level -> a representation (B, D).

    A token of sines of 250 ln t stands behind the class token, queries, keys and values have no bias, and the input is
    scaled by 1 / √(t² + 0.25).

    Args:
        network: Sizes.
        image_size: Side of the images.
        channels: Of the images.

    Raises:
        InputError: When the patch does not divide the image.
    """

    def __init__(self, network: Network, *, image_size: int, channels: int) -> None:
        shape = Architecture(
            depth=network.depth,
            width=network.width,
            heads=network.heads,
            patch=network.patch,
            mlp=network.mlp,
        )
        super().__init__(shape, image_size=image_size, channels=channels)
        places = self.pos_embed.shape[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, places, network.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for block in self.blocks:
            block.attn.qkv.bias = None
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                # The released encoders': tokens start with a variance of 4e-4, where an epsilon of 1e-6 shows.
                module.eps = 1e-5

    def forward(self, x: Tensor, t: Tensor, *, normed: bool = True) -> Tensor:
        """Return the class token.

        Args:
            x: x + t ε with images x in [-1, 1], (B, C, H, W).
            t: Levels (B,) or ().
            normed: Whether it went through the last norm.
        """
        t = t.to(x).expand(len(x))
        patches = self.patch_embed(input_scale(t)[:, None, None, None] * x)
        waves = time_waves(t, self.num_features).to(patches.dtype)[:, None]
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), waves, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0]) if normed else tokens[:, 0]


def projector(network: Network) -> nn.Sequential:
    """Return g: three layers without biases, batch norm and ReLU between them."""
    sizes = (network.width, network.hidden, network.hidden)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(network.hidden, network.projected, bias=False))


class NoisyClassifier(nn.Module):
    """A classifier of noisy images, one call of the encoder an image: the base of a smoothed classifier.

    Args:
        encoder: The encoder.
        classes: K.
        sigma: Noise beside images in [0, 1] that it is made for; 0 for clean images.
        normed: Whether the head reads the normed class token.
    """

    def __init__(self, encoder: RrcmEncoder, classes: int, *, sigma: float, normed: bool = False) -> None:
        super().__init__()
        self.encoder, self.sigma, self.normed = encoder, sigma, normed
        self.head = nn.Linear(encoder.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.level = nearest_level(sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of noisy images beside [0, 1] (B, C, H, W)."""
        level = torch.tensor(self.level, device=x.device)
        return self.head(self.encoder(2 * x - 1, level, normed=self.normed))
