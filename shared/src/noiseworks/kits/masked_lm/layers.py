"""The parts of a host that a cached forward calls one by one, by the released module names.

Only submodules are called, never their weights read, so adapters of peft inside them are honoured.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm.arithmetic import rotary
from noiseworks.kits.masked_lm.hosts import unwrapped
from noiseworks.kits.masked_lm.llada import check_released, key_heads
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """One layer in parts.

    Attributes:
        norm1: Norm before attention.
        q: Query projection.
        k: Key projection.
        v: Value projection.
        out: Output projection of attention.
        norm2: Norm before the feed-forward layer.
        gate: Gate projection.
        up: Up projection.
        down: Down projection.
        heads: Query heads.
        kv_heads: Key and value heads.
    """

    norm1: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    norm2: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    heads: int
    kv_heads: int

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, L, d], keys and values [B, G, L, d] of `norm1`'s output; not rotated."""
        pairs = ((self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads))
        q, k, v = (project(normed).unflatten(-1, (count, -1)).transpose(1, 2) for project, count in pairs)
        return q, k, v

    def mlp(self, normed: Tensor) -> Tensor:
        """Return the feed-forward output for `norm2`'s output."""
        return self.down(F.silu(self.gate(normed)) * self.up(normed))


@dataclass(frozen=True)
class LayerAccess:
    """A host in parts.

    Attributes:
        embed: Token embedding.
        blocks: The layers.
        norm: Final norm.
        head: Output head.
        theta: Base of the rotary frequencies.
        head_dim: Width of a head.
    """

    embed: nn.Module
    blocks: tuple[Block, ...]
    norm: nn.Module
    head: nn.Module
    theta: float
    head_dim: int

    def rotary(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Turn queries or keys [B, H, L, d] by absolute positions, int64 [L] or [B, L]."""
        return rotary(heads, positions, self.theta)


def layer_access(model: nn.Module) -> LayerAccess:
    """Return the parts of a LLaDA or Dream model, native, of the released remote code, or adapted by peft.

    Raises:
        InputError: For another kind of model, or a LLaDA model with arithmetic that the released ones do not have.
    """
    host = unwrapped(model)
    config = host.config
    kind = str(getattr(config, "model_type", "")).lower()
    if kind == "llada":
        # A model of the remote code may compute what these parts do not.
        check_released(vars(config))
        parts = host.model.transformer
        names = (
            "attn_norm",
            "q_proj",
            "k_proj",
            "v_proj",
            "attn_out",
            "ff_norm",
            "ff_proj",
            "up_proj",
            "ff_out",
        )
        multi_query = getattr(config, "multi_query_attention", None)
        counts = (config.n_heads, key_heads(config.n_heads, config.n_kv_heads, multi_query))
        blocks = tuple(Block(*(getattr(block, name) for name in names), *counts) for block in parts["blocks"])
        edges = (parts["wte"], blocks, parts["ln_f"], parts["ff_out"])
        return LayerAccess(*edges, config.rope_theta, config.d_model // config.n_heads)
    if kind == "dream":
        counts = (config.num_attention_heads, config.num_key_value_heads)
        blocks = tuple(_dream_block(layer, counts) for layer in host.model.layers)
        edges = (host.model.embed_tokens, blocks, host.model.norm, host.lm_head)
        return LayerAccess(*edges, config.rope_theta, config.hidden_size // config.num_attention_heads)
    raise InputError(f"need a LLaDA or Dream model, got model_type {getattr(config, 'model_type', None)!r}")


def _dream_block(layer: nn.Module, counts: tuple[int, int]) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    gates = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return Block(layer.input_layernorm, *projections, layer.post_attention_layernorm, *gates, *counts)
