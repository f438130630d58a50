"""The diffusion policies' transformer with a plan: the forward pass that leaves out what a step does not need.

A step without computed blocks is input embedding, one addition, final norm and head. The condition is read only
where a cross-attention block is computed; its observation tokens are embedded once a replan and its time
token once a diffusion step.
"""

from collections.abc import Callable
from typing import Any

import torch
from noiseworks.bac.cache import BlockCache
from noiseworks.bac.hosts import DECODER, Branch, DecoderCall, Stack
from torch import Tensor, nn
from torch.nn import functional as F

_PARTS = (
    "input_emb",
    "pos_emb",
    "time_emb",
    "cond_obs_emb",
    "cond_pos_emb",
    "encoder",
    "decoder",
    "ln_f",
    "head",
)


def has_decoder_layout(network: nn.Module, stack: Stack) -> bool:
    """Return whether a network is the diffusion policies' transformer: its parts, and no other layers."""
    if stack.family is not DECODER or any(getattr(network, name, None) is None for name in _PARTS):
        return False
    return isinstance(network.decoder, nn.TransformerDecoder) and network.decoder.norm is None


class Condition(DecoderCall):
    """The condition of one replan, [B, S, D], computed where a cross-attention asks for it.

    Args:
        network: The transformer.
        length: T.
        times: Embedded time tokens by diffusion step, shared by all replans.
    """

    def __init__(self, network: nn.Module, length: int, times: dict[float, Tensor]) -> None:
        mask = None if network.mask is None else network.mask[:length, :length]
        memory_mask = None if network.memory_mask is None else network.memory_mask[:length]
        # `sdpa` has a faster path for a causal mask that it is only told of.
        self.self_arguments = (mask, None, mask is not None and _is_causal(mask))
        self.cross_arguments = (memory_mask, None, False)
        self._network, self._times = network, times
        self._observations: Tensor | None = None
        self._inputs: tuple[float, Tensor | float, Tensor] | None = None
        self._memory: Tensor | None = None

    def at(self, time: float, timestep: Tensor | float, cond: Tensor) -> None:
        """Move to the next step of the replan."""
        self._inputs, self._memory = (time, timestep, cond), None

    @property
    def memory(self) -> Tensor:
        """Encoded condition of this step."""
        if self._memory is None:
            self._memory = self._encode(*self._inputs)
        return self._memory

    def _encode(self, time: float, timestep: Tensor | float, cond: Tensor) -> Tensor:
        net, rows = self._network, len(cond)
        if not isinstance(net.encoder, nn.Sequential):  # tokens attend to each other
            tokens = torch.cat(
                (_time_tokens(net, timestep, cond).expand(rows, 1, -1), net.cond_obs_emb(cond)), 1
            )
            return net.encoder(tokens + net.cond_pos_emb[:, : tokens.shape[1]])
        if self._observations is None:
            tokens = net.cond_obs_emb(cond)
            self._observations = net.encoder(tokens + net.cond_pos_emb[:, 1 : 1 + tokens.shape[1]])
        if time not in self._times:
            tokens = _time_tokens(net, timestep, cond)
            self._times[time] = net.encoder(tokens + net.cond_pos_emb[:, :1])
        return torch.cat((self._times[time].expand(rows, 1, -1), self._observations), dim=1)


def lean_branches(layers: tuple[nn.Module, ...]) -> tuple[Branch, ...]:
    """Return the branches of decoder layers without the generality of `nn.MultiheadAttention`, where that is it.

    They give what the layers' own methods give, in evaluation mode, in about two thirds of the time at batch 1.
    """
    plain = all(
        type(attention) is nn.MultiheadAttention
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.batch_first
        for layer in layers
        for attention in (layer.self_attn, layer.multihead_attn)
    )
    return (_self_attention, _cross_attention, _feed_forward) if plain else tuple(DECODER.branches.values())


def _self_attention(layer: nn.Module, x: Tensor, call: "Condition") -> Tensor:
    attention, (rows, length, width) = layer.self_attn, x.shape
    heads = attention.num_heads
    projected = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = projected.view(rows, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mask, _, causal = call.self_arguments
    mixed = F.scaled_dot_product_attention(q, k, v, None if causal else mask, is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(rows, length, width)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def _cross_attention(layer: nn.Module, x: Tensor, call: "Condition") -> Tensor:
    attention, (rows, length, width) = layer.multihead_attn, x.shape
    memory, heads = call.memory, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q = F.linear(layer.norm2(x), weight[:width], None if bias is None else bias[:width])
    both = F.linear(memory, weight[width:], None if bias is None else bias[width:])
    k, v = both.view(rows, memory.shape[1], 2, heads, width // heads).permute(2, 0, 3, 1, 4)
    q = q.view(rows, length, heads, width // heads).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, call.cross_arguments[0])
    mixed = mixed.transpose(1, 2).reshape(rows, length, width)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def _feed_forward(layer: nn.Module, x: Tensor, call: "Condition") -> Tensor:
    return layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))


def make_decoder_forward(
    network: nn.Module, stack: Stack, cache: BlockCache, exact: bool
) -> Callable[..., Tensor]:
    """Return what is wrapped around the network's own forward pass while a plan is attached, and replaces it.

    Args:
        network: The transformer; its weights must not change while the plan is attached.
        stack: Its layers.
        cache: The compiled plan.
        exact: Whether the network's own runs the steps whose outputs nobody reuses.
    """
    branches = lean_branches(stack.layers)
    embedding, norm, head = network.input_emb, network.ln_f, network.head
    times: dict[float, Tensor] = {}

    def forward(
        beneath: Callable[..., Tensor],
        sample: Tensor,
        timestep: Tensor | float,
        cond: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        step = cache.begin(timestep, sample)
        if exact and step.untouched:
            return beneath(sample, timestep, cond, **kwargs)
        x = embedding(sample) + network.pos_emb[:, : sample.shape[1]]
        if step.reused is not None:
            x = x + cache.sum_of(step.reused)
        else:
            condition = cache.kept[cache.call]
            if condition is None:
                condition = cache.kept[cache.call] = Condition(network, sample.shape[1], times)
            condition.at(cache.time, timestep, cond)
            for index, layer in enumerate(stack.layers):
                x = cache.run_layer(layer, index, x, condition, branches)
        return head(norm(x))

    return forward


def _time_tokens(network: nn.Module, timestep: Tensor | float, like: Tensor) -> Tensor:
    first = torch.as_tensor(timestep, device=like.device).reshape(-1)[:1]
    return network.time_emb(first)[:, None].to(like.dtype)


def _is_causal(mask: Tensor) -> bool:
    return torch.equal(mask, nn.Transformer.generate_square_subsequent_mask(len(mask)).to(mask))
