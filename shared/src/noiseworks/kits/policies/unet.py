"""The one-dimensional U-Net of diffusion policies (Chi et al. 2023), with FiLM conditioning.

Parameter names and shapes are those of the published checkpoints, so these load with `strict=True`.
"""

from collections.abc import Sequence

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.embeddings import SinusoidalPosEmb, step_batch
from torch import Tensor, nn


class Conv1dBlock(nn.Module):
    """Convolution that keeps the length, group normalisation and Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, T] to [B, out_channels, T]."""
        return self.block(x)


class Downsample1d(nn.Module):
    """Strided convolution that halves the length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T] to [B, C, T / 2]."""
        return self.conv(x)


class Upsample1d(nn.Module):
    """Transposed convolution that doubles the length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T] to [B, C, 2 T]."""
        return self.conv(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks with a residual path; FiLM acts between them.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        cond_dim: Width of the condition.
        kernel_size: Length of the kernels, odd.
        n_groups: Groups of the normalisation.
        cond_predict_scale: Whether the condition gives scale and shift, or a shift alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        n_groups: int,
        cond_predict_scale: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        self.cond_predict_scale = cond_predict_scale
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(cond_dim, out_channels * (2 if cond_predict_scale else 1))
        )
        self.residual_conv = (
            nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def film(self, feature: Tensor) -> Tensor:
        """Return this block's modulation of a condition [B, cond_dim]: [B, C or 2 C, 1]."""
        return self.cond_encoder(feature).unsqueeze(-1)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map [B, in_channels, T] to [B, out_channels, T] under a modulation of `film`."""
        hidden = self.blocks[0](x)
        if self.cond_predict_scale:
            scale, shift = film.chunk(2, dim=1)
            hidden = torch.addcmul(shift, scale, hidden)
        else:
            hidden = hidden + film
        return self.blocks[1](hidden) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    """Predicts the noise (or the clean actions) of a sequence of actions.

    `forward` is `trunk(sample, films(global_feature(timestep, global_cond)))`. The three parts are public so
    that a sampler with a fixed list of steps can compute the modulations once.

    Args:
        input_dim: Width of an action.
        local_cond_dim: Width of a condition per action, or None.
        global_cond_dim: Width of the condition of the whole sequence, or None.
        diffusion_step_embed_dim: Width of the step embedding.
        down_dims: Channels of each level.
        kernel_size: Length of the kernels, odd.
        n_groups: Groups of the normalisations; must divide every entry of `down_dims`.
        cond_predict_scale: Whether FiLM scales as well as shifts.

    Raises:
        InputError: When a size is out of range.
    """

    def __init__(
        self,
        input_dim: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
    ) -> None:
        super().__init__()
        check_number("input_dim", input_dim, low=1, integer=True)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {kernel_size}")
        if any(dim % n_groups for dim in down_dims):
            raise InputError(f"down_dims must be divisible by n_groups = {n_groups}, got {tuple(down_dims)}")
        width = diffusion_step_embed_dim
        cond_dim = width + (global_cond_dim or 0)
        self.down_dims = tuple(down_dims)

        def block(in_channels: int, out_channels: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                in_channels, out_channels, cond_dim, kernel_size, n_groups, cond_predict_scale
            )

        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        self.local_cond_encoder = None
        if local_cond_dim is not None:
            self.local_cond_encoder = nn.ModuleList([block(local_cond_dim, down_dims[0]) for _ in range(2)])
        pairs = list(zip((input_dim, *down_dims[:-1]), down_dims, strict=True))
        self.mid_modules = nn.ModuleList([block(down_dims[-1], down_dims[-1]) for _ in range(2)])
        self.down_modules = nn.ModuleList()
        for level, (before, after) in enumerate(pairs):
            last = level == len(pairs) - 1
            resample = nn.Identity() if last else Downsample1d(after)
            self.down_modules.append(nn.ModuleList([block(before, after), block(after, after), resample]))
        self.up_modules = nn.ModuleList()
        for before, after in reversed(pairs[1:]):
            parts = [block(2 * after, before), block(before, before), Upsample1d(before)]
            self.up_modules.append(nn.ModuleList(parts))
        self.final_conv = nn.Sequential(
            Conv1dBlock(down_dims[0], down_dims[0], kernel_size), nn.Conv1d(down_dims[0], input_dim, 1)
        )

    @property
    def horizon_multiple(self) -> int:
        """What the length of a sequence must be a multiple of: one factor 2 per level but the first."""
        return 2 ** (len(self.down_dims) - 1)

    def residual_blocks(self) -> list[ConditionalResidualBlock1D]:
        """Return the FiLM blocks of the trunk in the order in which they are applied."""
        levels = [*self.down_modules, self.mid_modules, *self.up_modules]
        return [part for level in levels for part in level if isinstance(part, ConditionalResidualBlock1D)]

    def global_feature(self, timestep: Tensor, global_cond: Tensor | None = None) -> Tensor:
        """Return the condition of the whole sequence: embedded steps [B] joined with `global_cond` [B, G]."""
        sinusoids, first, mish, second = self.diffusion_step_encoder
        # The embedding is float32 whatever the weights are.
        feature = second(mish(first(sinusoids(timestep).to(first.weight.dtype))))
        return feature if global_cond is None else torch.cat((feature, global_cond), dim=-1)

    def films(self, feature: Tensor) -> list[Tensor]:
        """Return the modulation of every block in `residual_blocks` by a feature of `global_feature`."""
        return [block.film(feature) for block in self.residual_blocks()]

    def trunk(self, sample: Tensor, films: Sequence[Tensor], local: Tensor | None = None) -> Tensor:
        """Return the prediction [B, T, input_dim] for a sample [B, T, input_dim] under given modulations.

        Args:
            sample: Noisy actions.
            films: One modulation a block.
            local: Encoded local condition [B, C, T] of the first level, or None.
        """
        x, skips, film = sample.transpose(1, 2), [], iter(films)
        for level, (first, second, resample) in enumerate(self.down_modules):
            x = first(x, next(film))
            x = second(x if local is None or level else x + local, next(film))
            skips.append(x)
            x = resample(x)
        for block in self.mid_modules:
            x = block(x, next(film))
        for first, second, resample in self.up_modules:
            x = first(torch.cat((x, skips.pop()), dim=1), next(film))
            x = resample(second(x, next(film)))
        return self.final_conv(x).transpose(1, 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction for noisy actions.

        Args:
            sample: Noisy actions [B, T, input_dim], T a multiple of `horizon_multiple`.
            timestep: Diffusion steps, [B] or one number.
            local_cond: [B, T, local_cond_dim] or None.
            global_cond: [B, global_cond_dim] or None.

        Returns:
            [B, T, input_dim].

        Raises:
            InputError: When T does not fit the levels.
        """
        if sample.shape[1] % self.horizon_multiple:
            raise InputError(
                f"the horizon must be a multiple of {self.horizon_multiple} for {len(self.down_dims)} levels, "
                f"got {sample.shape[1]}"
            )
        feature = self.global_feature(step_batch(timestep, sample), global_cond)
        local = None
        if local_cond is not None:
            # The published networks hold a second block, for the way up, and never use it.
            block = self.local_cond_encoder[0]
            local = block(local_cond.transpose(1, 2), block.film(feature))
        return self.trunk(sample, self.films(feature), local)
