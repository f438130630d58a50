"""A vision transformer, with timm's parameter names and methods."""

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.layers import Attention, Mlp, PatchEmbed
from noiseworks.kits.backbones.options import Architecture
from torch import Tensor, nn


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a norm (pre-norm)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """The network: images -> tokens, features, logits.

    Args:
        architecture: Sizes; `learn_sigma` is not read.
        image_size: Side of the images.
        channels: Of the images.
        classes: Of the head; 0 for none.

    Attributes:
        num_features: Width of the features.

    Raises:
        InputError: When the patch does not divide the image.
    """

    def __init__(
        self, architecture: Architecture, *, image_size: int, channels: int = 3, classes: int = 0
    ) -> None:
        super().__init__()
        if image_size % architecture.patch:
            raise InputError(
                f"image_size must be a multiple of patch ({architecture.patch}), got {image_size}"
            )
        width, places = architecture.width, (image_size // architecture.patch) ** 2
        self.num_features = width
        self.patch_embed = PatchEmbed(architecture.patch, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places + 1, width))
        hidden = int(architecture.mlp * width)
        self.blocks = nn.ModuleList(
            ViTBlock(width, architecture.heads, hidden) for _ in range(architecture.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        self.reset_classifier(classes)

    def reset_classifier(self, classes: int) -> None:
        """Put a new head in place; 0 classes for none."""
        self.head = nn.Linear(self.num_features, classes) if classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed tokens (B, 1 + N, D) of images (B, C, H, W), the class token first."""
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K), or with `pre_logits` the class token (B, D)."""
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K), or features (B, D) without a head."""
        return self.forward_head(self.forward_features(x))
