"""The transformer of diffusion policies (Chi et al. 2023): a decoder over actions that reads the condition.

Parameter names and shapes are those of the published checkpoints; `_dummy_variable`, an empty parameter of
theirs, is the one name left out (`strip_published` removes it).
"""

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.embeddings import SinusoidalPosEmb, step_batch
from torch import Tensor, nn


class TransformerForDiffusion(nn.Module):
    """Predicts the noise (or the clean actions) of a sequence of actions.

    Condition tokens are the diffusion step, then one token per observation. With `causal_attn` action t reads
    actions up to t and condition tokens s with t >= s - 1.

    Args:
        input_dim: Width of an action.
        output_dim: Width of the prediction.
        horizon: Largest number of actions.
        n_obs_steps: Number of observations; by default `horizon`.
        cond_dim: Width of an observation; 0 for none.
        n_layer: Decoder layers.
        n_head: Heads; must divide `n_emb`.
        n_emb: Width.
        p_drop_emb: Dropout of the embeddings.
        p_drop_attn: Dropout inside the layers.
        causal_attn: Whether attention is masked as above.
        n_cond_layers: Encoder layers over the condition; 0 for a two-layer perceptron.

    Raises:
        InputError: When a size is out of range.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        check_number("horizon", horizon, low=1, integer=True)
        if n_emb % n_head:
            raise InputError(f"n_emb must be divisible by n_head, got {n_emb} and {n_head}")
        tokens = 1 + ((horizon if n_obs_steps is None else n_obs_steps) if cond_dim else 0)
        layer = {"d_model": n_emb, "nhead": n_head, "dim_feedforward": 4 * n_emb, "dropout": p_drop_attn}
        layer |= {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.horizon = horizon
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim else None
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        if n_cond_layers:
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**layer), n_cond_layers, enable_nested_tensor=False
            )
        else:
            self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), n_layer)
        action, token = torch.arange(horizon), torch.arange(tokens)
        mask = _additive(action[:, None] >= action) if causal_attn else None
        memory_mask = _additive(action[:, None] >= token - 1) if causal_attn and cond_dim else None
        self.register_buffer("mask", mask)
        self.register_buffer("memory_mask", memory_mask)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights from N(0, 0.02), biases 0; outputs of attention are `Linear` layers as well."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and not (name == "cond_pos_emb" and self.cond_obs_emb is None):
                nn.init.normal_(parameter, std=0.02)

    def memory(self, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Return the encoded condition [B, 1 + n_obs, n_emb] of steps [B] and observations [B, n_obs, cond_dim]."""
        tokens = self.time_emb(timestep)[:, None].to(self.pos_emb.dtype)
        if self.cond_obs_emb is not None:
            tokens = torch.cat((tokens, self.cond_obs_emb(cond)), dim=1)
        return self.encoder(self.drop(tokens + self.cond_pos_emb[:, : tokens.shape[1]]))

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None) -> Tensor:
        """Return the prediction for noisy actions.

        Args:
            sample: Noisy actions [B, T, input_dim], T at most `horizon`.
            timestep: Diffusion steps, [B] or one number.
            cond: Observations [B, n_obs_steps, cond_dim], or None when there are none.

        Returns:
            [B, T, output_dim].
        """
        length = sample.shape[1]
        if length > self.horizon:
            raise InputError(f"the sequence must have at most {self.horizon} actions, got {length}")
        memory = self.memory(step_batch(timestep, sample), cond)
        x = self.drop(self.input_emb(sample) + self.pos_emb[:, :length])
        mask = None if self.mask is None else self.mask[:length, :length]
        memory_mask = None if self.memory_mask is None else self.memory_mask[:length]
        x = self.decoder(x, memory, tgt_mask=mask, memory_mask=memory_mask)
        return self.head(self.ln_f(x))


def _additive(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def strip_published(state: dict[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """Return a network's tensors out of a published policy's state, under this kit's names.

    Args:
        state: State of a policy; its network's names start with `prefix`.
        prefix: What to take off; an empty string when `state` is the network's own.

    Returns:
        Names and tensors for `load_state_dict(..., strict=True)` of the U-Net or the transformer.

    Raises:
        InputError: When no name starts with `prefix`.
    """
    found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    if not found:
        raise InputError(f"no tensor's name starts with {prefix!r}: the state is not a policy of that layout")
    found.pop("_dummy_variable", None)
    return found


def optimizer_groups(model: nn.Module, weight_decay: float = 1e-3) -> list[dict]:
    """Return AdamW groups: matrices of linear and attention layers decay; biases, norms and positions do not."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith("pos_emb")
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
