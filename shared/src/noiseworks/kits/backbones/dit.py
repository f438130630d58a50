"""The diffusion transformer with adaLN-Zero blocks (DiT, Peebles and Xie 2023), with its released parameter names.

A state dict of the released checkpoints loads strictly; `conversion` turns the model into diffusers' class and back.
"""

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.layers import Attention, Mlp, PatchEmbed, grid_positions, timestep_waves
from noiseworks.kits.backbones.options import DiTConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WAVES = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return `x (1 + scale) + shift` for tokens (B, N, D) and a shift and scale of each sample (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class TimestepEmbedder(nn.Module):
    """Timesteps -> vectors: sinusoids, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return e_t (B, D) of timesteps (B,)."""
        return self.mlp(timestep_waves(timesteps, WAVES).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels -> vectors; the last row stands for no label."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Return (B, D) of labels (B,)."""
        return self.embedding_table(labels)


class DiTBlock(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate that starts at zero."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden, "tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return tokens (B, N, D) for tokens and a condition (B, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """A modulated norm and the projection of tokens to patches."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return (B, N, patch² C)."""
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, dim=1)))


class DiT(nn.Module):
    """The network: noisy images, timesteps and labels -> prediction.

    Labels are dropped by whoever trains (`training.drop_labels`), once for the whole network.

    Args:
        config: Sizes.

    Attributes:
        gradient_checkpointing: Whether blocks are computed again in the backward pass instead of kept.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, False
        side = config.image_size // config.patch
        self.x_embedder = PatchEmbed(config.patch, config.channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = LabelEmbedder(config.classes, config.width)
        table = torch.zeros(1, side**2, config.width)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        hidden = int(config.mlp * config.width)
        self.blocks = nn.ModuleList(DiTBlock(config.width, config.heads, hidden) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, config.patch**2 * config.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            side = self.config.image_size // self.config.patch
            self.pos_embed.copy_(grid_positions(side, self.config.width)[None])
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (
            self.y_embedder.embedding_table.weight,
            self.t_embedder.mlp[0].weight,
            self.t_embedder.mlp[2].weight,
        ):
            nn.init.normal_(weight, std=0.02)
        closed = [block.adaLN_modulation[1] for block in self.blocks]
        for layer in (*closed, self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            nn.init.zeros_(layer.weight)

    @property
    def null_label(self) -> int:
        """The label that stands for none."""
        return self.config.classes

    def tokens(self, x: Tensor) -> Tensor:
        """Return the embedded tokens (B, N, D) of images (B, C, H, W).

        Raises:
            InputError: On images of another shape than the model's.
        """
        size, channels = self.config.image_size, self.config.channels
        if x.shape[1:] != (channels, size, size):
            raise InputError(f"images must have shape (B, {channels}, {size}, {size}), got {tuple(x.shape)}")
        return self.x_embedder(x) + self.pos_embed

    def features(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, N, D) after the last block, and the condition (B, D)."""
        x, e = self.tokens(x), self.t_embedder(t)
        c = e + self.y_embedder(y)
        for number in range(len(self.blocks)):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.run_block, number, x, c, e, use_reentrant=False)
            else:
                x = self.run_block(number, x, c, e)
        return x, c

    def run_block(self, number: int, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        """Return the tokens after a block; what a subclass overrides.

        Args:
            number: The block's number.
            x: Tokens (B, N, D).
            c: Condition (B, D).
            e: The part of it that comes from the timestep (B, D).
        """
        return self.blocks[number](x, c)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the prediction (B, C or 2 C, H, W).

        Args:
            x: Noisy images (B, C, H, W).
            t: Timesteps (B,), 0 the least noisy.
            y: Labels (B,), `null_label` for none.
        """
        out = self.final_layer(*self.features(x, t, y))
        side, patch = self.config.image_size // self.config.patch, self.config.patch
        out = out.reshape(-1, side, side, patch, patch, self.config.out_channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.config.out_channels, side * patch, side * patch)
