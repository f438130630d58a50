"""The asymmetric auto-encoder: an encoder that sees the kept patches only, and a small decoder of all patches."""

import math
from typing import NamedTuple, Self

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.layers import Attention, Mlp, PatchEmbed
from noiseworks.kits.backbones.masking import Masks, gather_tokens, restore_tokens, to_images, to_patches
from noiseworks.umd.options import UMDConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

UNDECAYED = ("cls_tokens", "mask_token")


def time_waves(times: Tensor, width: int) -> Tensor:
    """Return [sin, cos] of times (B,) at frequencies `10000^(-i / (D/2 - 1))`, float32 (B, D)."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=times.device)
    angle = times[:, None].float() * torch.exp(-math.log(10000) * index / max(half - 1, 1))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Trunk(nn.Sequential):
    """Two layers that a time or a label goes through."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """Attention and MLP, each behind an affine norm; modulated and gated by six vectors where there are such."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden, "tanh")

    def forward(self, x: Tensor, six: Tensor | None) -> Tensor:
        """Return tokens (B, N, D).

        Args:
            x: Tokens (B, N, D).
            six: shift0, scale0, gate0, shift1, scale1, gate1, (B or 1, 6, D); None for a plain pre-norm block.
        """
        if six is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        shift0, scale0, gate0, shift1, scale1, gate1 = six[:, :, None].unbind(1)
        x = x + gate0 * self.attn(self.norm1(x) * (1 + scale0) + shift0)
        return x + gate1 * self.mlp(self.norm2(x) * (1 + scale1) + shift1)


class Stack(nn.Module):
    """Blocks and a last norm. The modulation of all blocks is one matrix product.

    Args:
        config: Sizes.
        depth: Blocks.
        extra: Further modulation vectors, beside six a block.
    """

    def __init__(self, config: UMDConfig, depth: int, extra: int = 0) -> None:
        super().__init__()
        width, self.extra, self.adaln = config.width, extra, config.adaln
        hidden = int(config.mlp * width)
        self.blocks = nn.ModuleList(Block(width, config.heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        vectors = (6 * depth if config.adaln else 0) + extra
        self.modulation = nn.Linear(width, vectors * width) if vectors else None
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed tokens (B, N, D) and the further modulation vectors (B or 1, extra, D).

        Args:
            x: Tokens (B, N, D).
            condition: The sum of the time's and the label's vectors (B or 1, D).
        """
        vectors = condition.new_zeros(1, 0, condition.shape[-1])
        if self.modulation is not None:
            vectors = self.modulation(nn.functional.silu(condition)).unflatten(1, (-1, condition.shape[-1]))
        for number, block in enumerate(self.blocks):
            six = vectors[:, 6 * number : 6 * number + 6] if self.adaln else None
            if not self.adaln:  # as a token of each block, which leaves after it
                x = torch.cat([condition[:, None].expand(len(x), -1, -1), x], dim=1)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, six, use_reentrant=False)
            else:
                x = block(x, six)
            x = x if self.adaln else x[:, 1:]
        return self.norm(x), vectors[:, vectors.shape[1] - self.extra :]


class Encoded(NamedTuple):
    """What the encoder returns: the representation (B, D), and a token of each kept patch (B, K, D)."""

    representation: Tensor
    tokens: Tensor


class UMD(nn.Module):
    """The network.

    Args:
        config: Sizes.

    Attributes:
        config: Sizes.
        num_features: Width of the representation.
    """

    def __init__(self, config: UMDConfig) -> None:
        super().__init__()
        width, self.config, self.num_features = config.width, config, config.width
        self.patch_embed = PatchEmbed(config.patch, config.channels, width)
        self.cls_tokens = nn.Parameter(torch.zeros(1, config.num_cls, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.encoder_positions = nn.Parameter(torch.empty(1, config.places, width))
        self.decoder_positions = nn.Parameter(torch.empty(1, config.places, width))
        self.time_trunk = Trunk(width)
        self.encoder = Stack(config, config.depth)
        self.decoder = Stack(config, config.decoder_depth, extra=2 if config.adaln else 0)
        self.to_x0 = nn.Linear(width, config.patch**2 * config.channels)
        self.to_epsilon = nn.Linear(width, config.patch**2 * config.channels)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        for table in (self.encoder_positions, self.decoder_positions):
            nn.init.normal_(table, std=config.places**-0.5)
        for stack in (self.encoder, self.decoder):
            if stack.modulation is not None:
                nn.init.zeros_(stack.modulation.weight)
        self._add_labels()

    def _add_labels(self) -> None:
        if self.config.classes:
            self.label_table = nn.Embedding(self.config.classes + 1, self.config.width)
            # As released: a smaller one would be lost beside the time's vector for as long as a short run lasts.
            nn.init.normal_(self.label_table.weight, std=self.config.width**-0.5)
            self.label_trunk = Trunk(self.config.width)

    def with_classes(self, classes: int) -> Self:
        """Return a copy with fresh labels, for fine-tuning; all other weights are these.

        Args:
            classes: At least 1.
        """
        config = UMDConfig(**vars(self.config) | {"classes": classes})
        made = type(self)(config).to(next(self.parameters()))
        own = {key: value for key, value in self.state_dict().items() if not key.startswith("label_")}
        made.load_state_dict(made.state_dict() | own)
        return made

    @property
    def null_label(self) -> int:
        """The label that stands for none; 0 where there are no labels."""
        return self.config.classes

    def condition(self, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the sum of the time's and the label's vectors (B, D).

        Args:
            times: 0 for noise-free samples, t + 1 for timestep t; (B,).
            labels: (B,); None for none.
        """
        found = self.time_trunk(time_waves(times, self.config.width).to(self.cls_tokens.dtype))
        if not self.config.classes:
            return found
        given = torch.full_like(times, self.null_label) if labels is None else labels
        return found + self.label_trunk(self.label_table(given))

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches (B, N, p² C) of images (B, C, H, W).

        Raises:
            InputError: On images of another shape than the model's.
        """
        size, channels = self.config.image_size, self.config.channels
        if images.shape[1:] != (channels, size, size):
            shape = tuple(images.shape)
            raise InputError(f"images must have shape (B, {channels}, {size}, {size}), got {shape}")
        return to_patches(images, self.config.patch)

    def run_encoder(self, patches: Tensor, condition: Tensor, masks: Masks | None = None) -> Encoded:
        """Return the representation and the tokens of the kept patches; removed ones are not even embedded."""
        positions = self.encoder_positions
        if masks is not None:
            patches = gather_tokens(patches, masks.kept)
            positions = gather_tokens(positions.expand(len(patches), -1, -1), masks.kept)
        tokens = self.patch_embed.embed(patches) + positions
        cls = self.cls_tokens.expand(len(tokens), -1, -1)
        out, _ = self.encoder(torch.cat([cls, tokens], dim=1), condition)
        return Encoded(out[:, : cls.shape[1]].mean(1), out[:, cls.shape[1] :])

    def run_decoder(self, encoded: Encoded, condition: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the tokens (B, N, D) of all patches, modulated if the blocks are, for `to_x0` and `to_epsilon`."""
        tokens = encoded.tokens
        if masks is not None:
            tokens = restore_tokens(tokens, self.mask_token, masks.restore)
        tokens = tokens + self.decoder_positions
        out, last = self.decoder(torch.cat([encoded.representation[:, None], tokens], dim=1), condition)
        if not self.config.adaln:
            return out[:, 1:]
        shift, scale = last[:, :, None].unbind(1)
        return out[:, 1:] * (1 + scale) + shift

    def predict(
        self, patches: Tensor, times: Tensor, labels: Tensor | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted clean patches and noise, (B, N, p² C) each.

        Args:
            patches: Of noised images (B, N, p² C).
            times: (B,) or, if all are equal, (1,).
            labels: (B,); None for none.
            masks: What the encoder does not see; None for nothing.
        """
        condition = self.condition(times, labels)
        tokens = self.run_decoder(self.run_encoder(patches, condition, masks), condition, masks)
        return self.to_x0(tokens), self.to_epsilon(tokens)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the predicted noise and clean image, one after the other, (B, 2 C, H, W).

        Args:
            x: Noisy images (B, C, H, W).
            t: Timesteps (B,), 0 the least noisy; the network is told t + 1.
            y: Labels (B,), `null_label` for none.
        """
        clean, noise = self.predict(self.patches(x), t + 1, y)
        shape = (self.config.patch, self.config.channels)
        return torch.cat([to_images(noise, *shape), to_images(clean, *shape)], dim=1)

    def forward_features(self, x: Tensor, time: int = 0) -> Encoded:
        """Return the representation and tokens of whole images (B, C, H, W), without the decoder."""
        times = torch.full((1,), time, device=x.device)
        return self.run_encoder(self.patches(x), self.condition(times))

    def encode(self, x: Tensor, time: int = 0) -> Tensor:
        """Return the representation (B, D), the mean of the learned tokens."""
        return self.forward_features(x, time).representation

    def reconstruct(self, x: Tensor, masks: Masks) -> Tensor:
        """Return images (B, C, H, W) whose removed patches are predicted from the kept ones."""
        patches = self.patches(x)
        times = torch.zeros(1, dtype=torch.int64, device=x.device)
        clean, _ = self.predict(patches, times, None, masks)
        filled = torch.where(masks.removed[..., None], clean, patches)
        return to_images(filled, self.config.patch, self.config.channels)
