"""The auto-encoder: an encoder of the kept patches, a lighter decoder of all, and a classifier on the first."""

from typing import Self

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.layers import PatchEmbed, grid_positions
from noiseworks.kits.backbones.masking import Masks, gather_tokens, restore_tokens, to_images, to_patches
from noiseworks.kits.backbones.vit import ViTBlock
from noiseworks.kits.training import Rows
from noiseworks.lmd.options import LMDConfig
from torch import Tensor, nn

UNDECAYED = ("cls_token", "mask_token")
HEAD_STD = 2e-5
PATCH_EPS = 1e-6  # without it patches that hardly vary would explode


def _start(module: nn.Module) -> None:
    """Give all linear layers and patch embeddings below a module the first weights of MAE."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if isinstance(layer, PatchEmbed):
            nn.init.xavier_uniform_(layer.proj.weight.flatten(1))
            nn.init.zeros_(layer.proj.bias)


def normalise_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches (B, N, d) less their mean over their deviation, and both (B, N, 1).

    The variance is the unbiased one, so that the mean square of a result is (d - 1) / d.

    Raises:
        InputError: On patches of a single number, which have no variance.
    """
    if patches.shape[-1] < 2:
        raise InputError("patches of one number cannot be normalised; use a larger patch, or no normalise")
    mean = patches.mean(-1, keepdim=True)
    deviation = (patches.var(-1, keepdim=True) + PATCH_EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


class Encoder(nn.Module):
    """A vision transformer of kept patches, with fixed positions, and timm's names.

    Args:
        config: Sizes.

    Attributes:
        config: Sizes.
        num_features: Width of the features.
    """

    def __init__(self, config: LMDConfig) -> None:
        super().__init__()
        self.config, self.num_features = config, config.width
        self.patch_embed = PatchEmbed(config.patch, config.channels, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("pos_embed", _positions(config.size // config.patch, config.width))
        hidden = int(config.mlp * config.width)
        self.blocks = nn.ModuleList(ViTBlock(config.width, config.heads, hidden) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        _start(self)
        nn.init.normal_(self.cls_token, std=0.02)

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, p² C) of latents or images (B, C, H, W).

        Raises:
            InputError: On another shape than the model's.
        """
        size, channels = self.config.size, self.config.channels
        if x.shape[1:] != (channels, size, size):
            shape = tuple(x.shape)
            raise InputError(f"the model takes inputs of shape (B, {channels}, {size}, {size}), got {shape}")
        return to_patches(x, self.config.patch)

    def forward(self, patches: Tensor, masks: Masks | None = None, drop_path: float = 0.0) -> Tensor:
        """Return normed tokens (B, 1 + K, D) of the kept patches, the class token first.

        Removed patches are not even embedded.

        Args:
            patches: All patches (B, N, p² C).
            masks: Which are kept; None for all, in their order.
            drop_path: Share of images for which the last block is left out; it grows from 0 in the first.
        """
        positions = self.pos_embed[:, 1:]
        if masks is not None:
            patches = gather_tokens(patches, masks.kept)
            positions = gather_tokens(positions.expand(len(patches), -1, -1), masks.kept)
        tokens = self.patch_embed.embed(patches) + positions
        first = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
        for number, block in enumerate(self.blocks):
            share = drop_path * number / max(1, len(self.blocks) - 1)
            x = x + _dropped(block.attn(block.norm1(x)), share)
            x = x + _dropped(block.mlp(block.norm2(x)), share)
        return self.norm(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed tokens (B, 1 + N, D) of whole latents or images (B, C, H, W), the class token first."""
        return self(self.patches(x))

    def resized(self, size: int) -> Self:
        """Return a copy for inputs of another side, with interpolated positions.

        Args:
            size: Side of the latents or images, a multiple of the patch.
        """
        made = type(self)(LMDConfig(**vars(self.config) | {"size": size})).to(self.cls_token)
        state = self.state_dict()
        table = (
            state["pos_embed"][:, 1:]
            .transpose(1, 2)
            .unflatten(2, (self.config.size // self.config.patch, -1))
        )
        side = size // self.config.patch
        moved = nn.functional.interpolate(table, (side, side), mode="bicubic", align_corners=False)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], moved.flatten(2).transpose(1, 2)], dim=1)
        made.load_state_dict(state)
        return made


def _positions(side: int, width: int) -> Tensor:
    """Return the fixed table of a class token (zeros) and a square grid, (1, 1 + side², width)."""
    return torch.cat([torch.zeros(1, width), grid_positions(side, width)])[None]


def _dropped(branch: Tensor, share: float) -> Tensor:
    """Return a residual branch (B, N, D) without a share of its images, the others larger for it."""
    if not share:
        return branch
    drawn = Rows.of(len(branch)).draw(lambda rows: torch.rand(rows, 1, 1, device=branch.device))
    kept = drawn >= share
    return branch * kept / (1 - share)


class LMD(nn.Module):
    """The masked auto-encoder.

    Args:
        config: Sizes.

    Attributes:
        config: Sizes.
        encoder: What remains after pre-training.
    """

    def __init__(self, config: LMDConfig) -> None:
        super().__init__()
        self.config, self.encoder = config, Encoder(config)
        width, hidden = config.decoder_width, int(config.mlp * config.decoder_width)
        self.decoder_embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("decoder_pos_embed", _positions(config.size // config.patch, width))
        self.decoder_blocks = nn.ModuleList(
            ViTBlock(width, config.decoder_heads, hidden) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, config.patch**2 * config.channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            _start(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, p² C) of latents or images (B, C, H, W)."""
        return self.encoder.patches(x)

    def predict(self, patches: Tensor, masks: Masks) -> Tensor:
        """Return a prediction of every patch (B, N, p² C) from the kept ones of patches (B, N, p² C)."""
        x = self.decoder_embed(self.encoder(patches, masks))
        x = torch.cat([x[:, :1], restore_tokens(x[:, 1:], self.mask_token, masks.restore)], dim=1)
        x = x - self.decoder_pos_embed if self.config.subtract_positions else x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x)[:, 1:])

    def reconstruct(self, x: Tensor, masks: Masks, *, normalised: bool = False, rounds: int = 1) -> Tensor:
        """Return latents or images (B, C, H, W) whose removed patches are predicted from the kept ones.

        Args:
            x: (B, C, H, W).
            masks: What is removed.
            normalised: Whether the model predicts normalised patches; they then get mean and deviation of the true
                patches, which an unknown image does not have.
            rounds: Passes. Each shows the next one further predictions as if they had been kept, in the order of the
                masks (an extension; the paper has one).

        Raises:
            InputError: On fewer than one round.
        """
        if rounds < 1:
            raise InputError(f"rounds must be at least 1, got {rounds}")
        patches = self.patches(x)
        keep, places = masks.kept.shape[1], patches.shape[1]
        order, filled = masks.restore.argsort(1), patches
        for number in range(rounds):
            shown = keep + (places - keep) * number // rounds
            seen = Masks(order[:, :shown], masks.restore, masks.restore >= shown)
            found = self.predict(filled, seen)
            if normalised:
                _, mean, deviation = normalise_patches(patches)
                found = found * deviation + mean
            filled = torch.where(seen.removed[..., None], found, filled)
        return to_images(filled, self.config.patch, self.config.channels)


class Classifier(nn.Module):
    """An encoder, the mean of its patches' tokens without the class token, a norm and a head.

    Args:
        encoder: The encoder; its last norm has no part in it.
        classes: Number of classes.
        drop_path: See `Encoder.forward`; in training only.
    """

    def __init__(self, encoder: Encoder, classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.drop_path, self.num_features = encoder, drop_path, encoder.num_features
        self.encoder.norm = nn.Identity()
        self.fc_norm = nn.LayerNorm(encoder.num_features, eps=1e-6)
        self.reset_classifier(classes)

    def reset_classifier(self, classes: int) -> None:
        """Put a new head in place."""
        self.head = nn.Linear(self.num_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return tokens (B, 1 + N, D) of latents or images (B, C, H, W)."""
        return self.encoder(self.encoder.patches(x), None, self.drop_path if self.training else 0.0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of tokens (B, 1 + N, D), or with `pre_logits` what the head reads (B, D)."""
        pooled = self.fc_norm(x[:, 1:].mean(1))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.forward_head(self.forward_features(x))
