"""LLaDA (Nie et al. 2025) as a transformers model: a bidirectional Llama encoder.

Configuration keys, parameter names and arithmetic are those of the released checkpoints, so
`LLaDAModelLM.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")` needs no remote code.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm.arithmetic import RMSNorm, attend, key_mask, rotary
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

# What the released models are, and the only thing this class computes. A key of null says nothing.
_FIXED = {
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "block_group_size": 1,
    "clip_qkv": None,
    "attention_layer_norm": False,
    "rope_full_precision": True,
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
}


def check_released(keys: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for arithmetic which the released models do not have.

    Args:
        keys: Keys and values of the configuration; others than those of the arithmetic are passed over.

    Raises:
        InputError: Naming the first such key.
    """
    for key, value in _FIXED.items():
        found = keys.get(key)
        if found is not None and found != value:
            raise InputError(f"LLaDA models have {key} = {value!r}, this configuration says {found!r}")


def key_heads(n_heads: int, n_kv_heads: int | None, multi_query: bool | None) -> int:
    """Return the number of key and value heads that the three keys of a configuration mean together.

    Raises:
        InputError: When they contradict each other.
    """
    said = None if multi_query is None else (1 if multi_query else n_heads)
    if None not in (said, n_kv_heads) and said != n_kv_heads:
        raise InputError(
            f"multi_query_attention = {multi_query} means {said} key heads, n_kv_heads says {n_kv_heads}; "
            "remove one of the two"
        )
    return next(count for count in (said, n_kv_heads, n_heads) if count is not None)


class LLaDAConfig(PreTrainedConfig):
    """Configuration of a LLaDA model; the keys are those of the released `config.json`.

    Args:
        d_model: Width.
        n_layers: Blocks.
        n_heads: Query heads.
        n_kv_heads: Key and value heads; None means `n_heads`.
        multi_query_attention: True for one key head, False for `n_heads`; None leaves it to `n_kv_heads`.
        mlp_hidden_size: Width of the gated feed-forward layer; None means 4 times `d_model`.
        vocab_size: Tokens.
        embedding_size: Rows of the embedding and the head; None means `vocab_size`.
        max_sequence_length: Longest sequence that the model was trained on.
        rope_theta: Base of the rotary frequencies.
        rms_norm_eps: Of the norms.
        mask_token_id: Id of [MASK].
        eos_token_id: End of text.
        pad_token_id: Padding.
        init_std: Standard deviation of fresh weights.
        kwargs: Keys of the released files that fix what this class computes, and those of transformers.

    Raises:
        InputError: When a key asks for something that the released models do not have.
    """

    model_type = "llada"

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        multi_query_attention: bool | None = None,
        mlp_hidden_size: int | None = 12288,
        vocab_size: int = 126464,
        embedding_size: int | None = 126464,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int = 126081,
        init_std: float = 0.02,
        **kwargs: Any,
    ) -> None:
        check_released(kwargs)
        for key, value in _FIXED.items():
            kwargs.pop(key, None)
            setattr(self, key, value)
        if d_model % n_heads:
            raise InputError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
        self.d_model, self.n_layers, self.n_heads = d_model, n_layers, n_heads
        self.n_kv_heads = key_heads(n_heads, n_kv_heads, multi_query_attention)
        self.mlp_hidden_size = 4 * d_model if mlp_hidden_size is None else mlp_hidden_size
        self.vocab_size = vocab_size
        self.embedding_size = vocab_size if embedding_size is None else embedding_size
        self.max_sequence_length, self.rope_theta = max_sequence_length, rope_theta
        self.rms_norm_eps, self.mask_token_id, self.init_std = rms_norm_eps, mask_token_id, init_std
        # transformers and peft look for these names.
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = d_model, n_layers, n_heads
        kwargs.pop("tie_word_embeddings", None)
        for derived in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            kwargs.pop(derived, None)
        kwargs.setdefault("use_cache", False)
        super().__init__(
            eos_token_id=eos_token_id, pad_token_id=pad_token_id, tie_word_embeddings=False, **kwargs
        )


class LLaDABlock(nn.Module):
    """One pre-norm block: attention without a causal mask, then the gated feed-forward layer."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        dim, head = config.d_model, config.d_model // config.n_heads
        self.heads, self.theta = (config.n_heads, config.n_kv_heads), config.rope_theta
        self.attn_norm = RMSNorm(dim, config.rms_norm_eps)
        self.ff_norm = RMSNorm(dim, config.rms_norm_eps)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, head * config.n_kv_heads, bias=False)
        self.v_proj = nn.Linear(dim, head * config.n_kv_heads, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.ff_proj = nn.Linear(dim, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(dim, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, dim, bias=False)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Return the block's output for `hidden` [B, L, D]."""
        normed = self.attn_norm(hidden)
        q, k, v = (
            projection(normed).unflatten(-1, (count, -1)).transpose(1, 2)
            for projection, count in zip(
                (self.q_proj, self.k_proj, self.v_proj), (self.heads[0], *[self.heads[1]] * 2), strict=True
            )
        )
        q, k = rotary(q, positions, self.theta), rotary(k, positions, self.theta)
        hidden = hidden + self.attn_out(attend(q, k, v, mask))
        normed = self.ff_norm(hidden)
        return hidden + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


class _Trunk(nn.Module):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )


class LLaDAModelLM(PreTrainedModel):
    """A masked diffusion language model: row i of the logits predicts token i.

    Args:
        config: Its configuration.
    """

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("LLaDABlock",)
    _supports_sdpa = True

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = _Trunk(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.model.transformer["ff_out"]

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output head."""
        self.model.transformer["ff_out"] = value

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Return the final, normalised features [B, L, D] that the head reads."""
        parts = self.model.transformer
        hidden = parts["wte"](input_ids)
        positions = (
            torch.arange(input_ids.shape[1], device=hidden.device) if position_ids is None else position_ids
        )
        mask = key_mask(attention_mask)
        for block in parts["blocks"]:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(block, hidden, positions, mask, use_reentrant=False)
            else:
                hidden = block(hidden, positions, mask)
        return parts["ln_f"](hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        """Return the logits [B, L, V] of every position.

        Args:
            input_ids: int64 [B, L]; masked positions hold `config.mask_token_id`.
            attention_mask: 1 for tokens and 0 for padding, [B, L], or bool [B, 1, L, L].
            position_ids: By default 0 … L-1, which left padding does not change (rotary is relative).
            past_key_values: Refused, as in the released code: attention is not causal.
            use_cache: Refused when true.
            return_dict: Accepted for the hosts of transformers; an output object is returned in any case.

        Raises:
            InputError: When a cache is asked for.
        """
        if past_key_values is not None or use_cache:
            raise InputError(
                "LLaDA attends in both directions and has no key-value cache; use noiseworks-freecache"
            )
        return CausalLMOutput(
            logits=self.model.transformer["ff_out"](
                self.hidden_states(input_ids, attention_mask, position_ids)
            )
        )


def make_llada(
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
) -> LLaDAModelLM:
    """Return a small untrained LLaDA model.

    Args:
        vocab_size: Tokens.
        d_model: Width.
        n_layers: Blocks.
        n_heads: Query heads.
        n_kv_heads: Key and value heads, by default `n_heads`.
        mlp_hidden_size: Width of the feed-forward layer, by default 3 times `d_model`, as released.
        mask_token_id: Id of [MASK].
        eos_token_id: End of text.
        pad_token_id: Padding.
        max_sequence_length: Longest sequence.
        rope_theta: Base of the rotary frequencies.
        seed: Of the weights.
    """
    config = LLaDAConfig(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        mlp_hidden_size=3 * d_model if mlp_hidden_size is None else mlp_hidden_size,
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        max_sequence_length=max_sequence_length,
        rope_theta=rope_theta,
        mask_token_id=mask_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LLaDAModelLM(config).eval()


AutoConfig.register("llada", LLaDAConfig)
AutoModel.register(LLaDAConfig, LLaDAModelLM)
AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM)
