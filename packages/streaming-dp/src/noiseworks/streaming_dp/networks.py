"""Networks that know the level of every position, made from scratch or from an ordinary policy's network.

The U-Net reads the concatenated embeddings of all levels (the paper's network); the transformer adds a level
embedding to each action token. Converted networks give the original's output when all levels are equal.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import ConditionalUnet1D, TransformerForDiffusion
from torch import Tensor, nn


class ConcatenatedLevels(nn.Module):
    """Embeds the level of each of Tp positions and joins the embeddings.

    Args:
        embedding: Maps steps [n] to [n, width], such as a network's sinusoidal embedding.
        horizon: Tp.
    """

    def __init__(self, embedding: nn.Module, horizon: int) -> None:
        super().__init__()
        self.embedding, self.horizon = embedding, horizon

    def forward(self, levels: Tensor) -> Tensor:
        """Return [B, Tp width] of levels [B, Tp]; one level [B] counts for all positions.

        Raises:
            InputError: When the number of positions is another.
        """
        if levels.ndim == 1:
            levels = levels[:, None].expand(-1, self.horizon)
        if levels.shape[1] != self.horizon:
            raise InputError(
                f"the network is built for {self.horizon} positions, got levels of {levels.shape[1]}"
            )
        return self.embedding(levels.reshape(-1)).reshape(len(levels), -1)


def concatenated_encoder(encoder: nn.Sequential, horizon: int) -> nn.Sequential:
    """Return a step encoder over Tp levels from one over a single step.

    The first linear layer W is repeated as W / Tp for each position, so that equal levels give its output.

    Args:
        encoder: Embedding, Linear(w, 4 w), activation, Linear(4 w, w).
        horizon: Tp.

    Raises:
        InputError: When the encoder has another layout.
    """
    layout = [type(layer) for layer in encoder]
    if len(layout) != 4 or layout[1] is not nn.Linear or layout[3] is not nn.Linear:
        raise InputError(
            "the step encoder must be an embedding, a linear layer, an activation and a linear layer, got "
            + ", ".join(kind.__name__ for kind in layout)
        )
    embedding, first, activation, second = copy.deepcopy(encoder)
    if isinstance(embedding, ConcatenatedLevels):
        raise InputError("the network reads a level for each position already; there is nothing to convert")
    wide = nn.Linear(first.in_features * horizon, first.out_features, dtype=first.weight.dtype)
    with torch.no_grad():
        wide.weight.copy_((first.weight / horizon).repeat(1, horizon))
        wide.bias.copy_(first.bias)
    wide.to(first.weight.device)
    return nn.Sequential(ConcatenatedLevels(embedding, horizon), wide, activation, second)


class StreamingUnet1d(ConditionalUnet1D):
    """The U-Net of diffusion policies, with levels [B, Tp] in place of one diffusion step.

    The Tp embeddings are concatenated to [B, width Tp] and pass Linear(width Tp -> 4 width), Mish and
    Linear(4 width -> width); this vector and the observations modulate every block. So Tp is fixed here.

    Args:
        input_dim: Width of an action.
        horizon: Tp, a multiple of 2^(levels - 1).
        local_cond_dim: Width of a condition per action, or None.
        global_cond_dim: Width of the condition of the whole sequence, or None.
        diffusion_step_embed_dim: Width of a level's embedding.
        down_dims: Channels of each resolution.
        kernel_size: Length of the kernels, odd.
        n_groups: Groups of the normalisations.
        cond_predict_scale: Whether FiLM scales as well as shifts.

    Raises:
        InputError: When a size is out of range.
    """

    def __init__(
        self,
        input_dim: int,
        horizon: int,
        local_cond_dim: int | None = None,
        global_cond_dim: int | None = None,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
    ) -> None:
        super().__init__(
            input_dim,
            local_cond_dim,
            global_cond_dim,
            diffusion_step_embed_dim,
            down_dims,
            kernel_size,
            n_groups,
            cond_predict_scale,
        )
        if horizon < 1 or horizon % self.horizon_multiple:
            raise InputError(
                f"the horizon must be a positive multiple of {self.horizon_multiple} for {len(down_dims)} "
                f"levels, got {horizon}"
            )
        self.horizon = horizon
        self.diffusion_step_encoder = concatenated_encoder(self.diffusion_step_encoder, horizon)


class StreamingTransformer(TransformerForDiffusion):
    """The transformer of diffusion policies, with levels [B, Tp] in place of one diffusion step.

    The step's condition token holds the mean of the levels' embeddings, and a learned projection of its own
    level's embedding, which starts at zero, is added to each action token less the mean's.

    Args:
        input_dim: Width of an action.
        output_dim: Width of the prediction.
        horizon: Tp.
        n_obs_steps: Number of observations.
        cond_dim: Width of an observation.
        n_layer: Decoder layers.
        n_head: Heads.
        n_emb: Width.
        p_drop_emb: Dropout of the embeddings.
        p_drop_attn: Dropout inside the layers.
        causal_attn: Whether attention is masked.
        n_cond_layers: Encoder layers over the condition.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__(
            input_dim,
            output_dim,
            horizon,
            n_obs_steps,
            cond_dim,
            n_layer,
            n_head,
            n_emb,
            p_drop_emb,
            p_drop_attn,
            causal_attn,
            n_cond_layers,
        )
        self.level_emb = nn.Linear(n_emb, n_emb, bias=False)
        nn.init.zeros_(self.level_emb.weight)
        self.time_emb = MeanLevel(self.time_emb)

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None) -> Tensor:
        """Return the prediction [B, Tp, output_dim].

        Args:
            sample: Noisy actions [B, Tp, input_dim].
            timestep: Levels [B, Tp], [B] or one number.
            cond: Observations [B, n_obs_steps, cond_dim].

        Raises:
            InputError: When the sequence is longer than the horizon.
        """
        length = sample.shape[1]
        if length > self.horizon:
            raise InputError(f"the sequence must have at most {self.horizon} actions, got {length}")
        levels = torch.as_tensor(timestep, device=sample.device)
        levels = levels[:, None] if levels.ndim == 1 else levels
        levels = levels.expand(len(sample), length)
        own = self.time_emb.embedding(levels).to(self.pos_emb.dtype)
        memory = self.memory(levels, cond)
        tokens = self.input_emb(sample) + self.pos_emb[:, :length]
        tokens = tokens + self.level_emb(own - own.mean(dim=1, keepdim=True))
        mask = None if self.mask is None else self.mask[:length, :length]
        memory_mask = None if self.memory_mask is None else self.memory_mask[:length]
        x = self.decoder(self.drop(tokens), memory, tgt_mask=mask, memory_mask=memory_mask)
        return self.head(self.ln_f(x))


class MeanLevel(nn.Module):
    """The mean over positions of an embedding of levels.

    Args:
        embedding: Maps steps [...] to [..., width].
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, levels: Tensor) -> Tensor:
        """Return [B, width] of levels [B, Tp]."""
        return self.embedding(levels).mean(dim=1)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published SDP U-Net under the names of `StreamingUnet1d`.

    The authors' step encoder holds two more layers without weights, which shifts the numbers of the others.
    """
    number = {"diffusion_step_encoder.3.": "diffusion_step_encoder.1."}
    number |= {"diffusion_step_encoder.5.": "diffusion_step_encoder.3."}
    found = {}
    for name, tensor in state.items():
        prefix = next((old for old in number if name.startswith(old)), None)
        found[name if prefix is None else number[prefix] + name.removeprefix(prefix)] = tensor
    return found
