"""Dream (Ye et al. 2025) as a transformers model: Qwen2's architecture without the causal mask.

Configuration keys, parameter names and arithmetic are those of the released checkpoints, so
`DreamModel.from_pretrained("Dream-org/Dream-v0-Instruct-7B")` needs no remote code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm.arithmetic import RMSNorm, attend, key_mask, rotary
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

# What the released models are, and the only thing this class computes.
_FIXED = {"tie_word_embeddings": False, "use_sliding_window": False, "attention_dropout": 0.0}


class DreamConfig(PreTrainedConfig):
    """Configuration of a Dream model; the keys are those of the released `config.json`.

    Args:
        vocab_size: Tokens.
        hidden_size: Width.
        intermediate_size: Width of the gated feed-forward layer.
        num_hidden_layers: Blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        max_position_embeddings: Longest sequence.
        rope_theta: Base of the rotary frequencies.
        rms_norm_eps: Of the norms.
        initializer_range: Standard deviation of fresh weights.
        mask_token_id: Id of [MASK].
        eos_token_id: End of text.
        pad_token_id: Padding.
        kwargs: Other keys of the released files (kept) and those of transformers.

    Raises:
        InputError: When a key asks for something that the released models do not have: another activation,
            scaled rotary positions, a sliding window, tied embeddings, dropout.
    """

    model_type = "Dream"

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int = 4,
        max_position_embeddings: int = 2048,
        rope_theta: float = 1000000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        mask_token_id: int = 151666,
        eos_token_id: int = 151643,
        pad_token_id: int = 151643,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("hidden_act", "silu") != "silu":
            raise InputError(f"Dream models use hidden_act = 'silu', got {kwargs['hidden_act']!r}")
        if kwargs.pop("rope_scaling", None) is not None:
            raise InputError("Dream models do not scale rotary positions; remove rope_scaling")
        for key, value in _FIXED.items():
            if kwargs.get(key, value) not in (None, value):
                raise InputError(
                    f"Dream models have {key} = {value!r}, this configuration says {kwargs[key]!r}"
                )
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.max_position_embeddings = num_key_value_heads, max_position_embeddings
        self.rope_theta, self.rms_norm_eps = rope_theta, rms_norm_eps
        self.initializer_range, self.mask_token_id = initializer_range, mask_token_id
        kwargs["tie_word_embeddings"] = False
        kwargs.setdefault("use_cache", False)
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)


class DreamAttention(nn.Module):
    """Grouped-query attention without a causal mask; queries, keys and values have biases."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        dim, head = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.heads, self.theta = (config.num_attention_heads, config.num_key_value_heads), config.rope_theta
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, head * config.num_key_value_heads)
        self.v_proj = nn.Linear(dim, head * config.num_key_value_heads)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention output for `hidden` [B, L, D]."""
        q, k, v = (
            projection(hidden).unflatten(-1, (count, -1)).transpose(1, 2)
            for projection, count in zip(
                (self.q_proj, self.k_proj, self.v_proj), (self.heads[0], *[self.heads[1]] * 2), strict=True
            )
        )
        q, k = rotary(q, positions, self.theta), rotary(k, positions, self.theta)
        return self.o_proj(attend(q, k, v, mask))


class DreamMLP(nn.Module):
    """The gated feed-forward layer `down(silu(gate x) · up x)`."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for `hidden` [B, L, D]."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class DreamDecoderLayer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = DreamAttention(config), DreamMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Return the block's output for `hidden` [B, L, D]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), positions, mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class DreamBaseModel(nn.Module):
    """Embedding, blocks and final norm, under the name `model` of the checkpoints."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DreamDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DreamModel(PreTrainedModel):
    """A masked diffusion language model with right-shifted logits: row i predicts token i + 1.

    Args:
        config: Its configuration.
    """

    config_class = DreamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("DreamDecoderLayer",)
    _supports_sdpa = True

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output head."""
        self.lm_head = value

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the final, normalised features [B, L, D] that the head reads (not shifted)."""
        hidden = self.model.embed_tokens(input_ids)
        positions = (
            torch.arange(input_ids.shape[1], device=hidden.device) if position_ids is None else position_ids
        )
        mask = key_mask(None if isinstance(attention_mask, str) else attention_mask)
        for layer in self.model.layers:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, positions, mask, use_reentrant=False)
            else:
                hidden = layer(hidden, positions, mask)
        return self.model.norm(hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        """Return the logits [B, L, V]; row i predicts token i + 1.

        Args:
            input_ids: int64 [B, L]; masked positions hold `config.mask_token_id`.
            attention_mask: None or `"full"`; 1 for tokens and 0 for padding, [B, L]; or bool [B, 1, L, L].
            position_ids: By default 0 … L-1, which left padding does not change (rotary is relative).
            past_key_values: Refused: attention is not causal.
            use_cache: Refused when true.
            return_dict: Accepted for the hosts of transformers; an output object is returned in any case.

        Raises:
            InputError: When a cache is asked for, or on a word other than "full" for the mask.
        """
        if past_key_values is not None or use_cache:
            raise InputError(
                "Dream attends in both directions and has no key-value cache; use noiseworks-freecache"
            )
        if isinstance(attention_mask, str) and attention_mask != "full":
            raise InputError(f'attention_mask must be a tensor, None or "full", got {attention_mask!r}')
        return CausalLMOutput(
            logits=self.lm_head(self.hidden_states(input_ids, attention_mask, position_ids))
        )


def make_dream(
    vocab_size: int,
    *,
    d_model: int = 128,
    n_layers: int = 4,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    mlp_hidden_size: int | None = None,
    mask_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
    max_sequence_length: int = 512,
    rope_theta: float = 10000.0,
    seed: int = 0,
) -> DreamModel:
    """Return a small untrained Dream model; the arguments are those of `make_llada`."""
    config = DreamConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=3 * d_model if mlp_hidden_size is None else mlp_hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads if n_kv_heads is None else n_kv_heads,
        max_position_embeddings=max_sequence_length,
        rope_theta=rope_theta,
        mask_token_id=mask_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DreamModel(config).eval()


AutoConfig.register("Dream", DreamConfig)
AutoModel.register(DreamConfig, DreamModel)
AutoModelForCausalLM.register(DreamConfig, DreamModel)
