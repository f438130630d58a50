"""Which networks can be cached: stacks of residual layers, and the branches of each layer.

A branch is what a layer adds to the residual stream. Three kinds of layer are known: `nn.TransformerDecoderLayer`
with pre-norm (the diffusion policies' transformer in all its libraries) and two adaptive-norm DiT layers, whose
branches include their gates: that of LeRobot's multi-task policy and that of diffusers' `DiTTransformer2DModel`.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Replace
from noiseworks.kits.policies.hosts import as_host
from torch import Tensor, nn

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import DenoiserHost

Branch = Callable[[nn.Module, Tensor, Any], Tensor]


class DecoderCall:
    """Arguments of an `nn.TransformerDecoderLayer` but the residual stream."""

    def __init__(
        self,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> None:
        self.memory, self.memory_mask = memory, memory_mask
        self.self_arguments = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        self.cross_arguments = (memory_mask, memory_key_padding_mask, memory_is_causal)


def decoder_self_attention(layer: nn.Module, x: Tensor, call: DecoderCall) -> Tensor:
    """Return SA(LN1 x)."""
    return layer._sa_block(layer.norm1(x), *call.self_arguments)


def decoder_cross_attention(layer: nn.Module, x: Tensor, call: DecoderCall) -> Tensor:
    """Return CA(LN2 x, memory)."""
    return layer._mha_block(layer.norm2(x), call.memory, *call.cross_arguments)


def decoder_feed_forward(layer: nn.Module, x: Tensor, call: DecoderCall) -> Tensor:
    """Return FF(LN3 x)."""
    return layer._ff_block(layer.norm3(x))


class DiTCall:
    """The modulation of a DiT layer: shifts, scales and gates, [B, 1, D] each; computed when first needed."""

    def __init__(self, layer: nn.Module, features: Tensor) -> None:
        self.layer, self.features = layer, features
        self.parts: tuple[Tensor, ...] | None = None

    def modulation(self) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of the attention, then of the perceptron."""
        if self.parts is None:
            self.parts = tuple(
                part.unsqueeze(1) for part in self.layer.adaLN_modulation(self.features).chunk(6, dim=1)
            )
        return self.parts


def dit_self_attention(layer: nn.Module, x: Tensor, call: DiTCall) -> Tensor:
    """Return gate * attention(modulated LN1 x)."""
    shift, scale, gate = call.modulation()[:3]
    y = layer.norm1(x) * (1 + scale) + shift
    return gate * (layer.attn(y) if hasattr(layer, "attn") else layer.multihead_attn(y, y, y)[0])


def dit_feed_forward(layer: nn.Module, x: Tensor, call: DiTCall) -> Tensor:
    """Return gate * perceptron(modulated LN2 x)."""
    shift, scale, gate = call.modulation()[3:]
    return gate * layer.mlp(layer.norm2(x) * (1 + scale) + shift)


class AdaZeroCall:
    """Arguments of diffusers' adaptive-norm layer; shifts, scales and gates, [B, 1, D] each, when first needed."""

    def __init__(
        self,
        layer: nn.Module,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> None:
        self.norm, self.timestep, self.class_labels = layer.norm1, timestep, class_labels
        self.attention = {"attention_mask": attention_mask, **(cross_attention_kwargs or {})}
        self.parts: tuple[Tensor, ...] | None = None

    def modulation(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of the attention, then of the feed-forward block."""
        if self.parts is None:
            embedded = self.norm.emb(self.timestep, self.class_labels, hidden_dtype=x.dtype)
            parts = self.norm.linear(self.norm.silu(embedded)).chunk(6, dim=1)
            self.parts = tuple(part.unsqueeze(1) for part in parts)
        return self.parts


def ada_zero_self_attention(layer: nn.Module, x: Tensor, call: AdaZeroCall) -> Tensor:
    """Return gate * attention(modulated LN1 x)."""
    shift, scale, gate = call.modulation(x)[:3]
    return gate * layer.attn1(layer.norm1.norm(x) * (1 + scale) + shift, **call.attention)


def ada_zero_feed_forward(layer: nn.Module, x: Tensor, call: AdaZeroCall) -> Tensor:
    """Return gate * FF(modulated LN3 x)."""
    shift, scale, gate = call.modulation(x)[3:]
    return gate * layer.ff(layer.norm3(x) * (1 + scale) + shift)


@dataclass(frozen=True)
class Family:
    """A kind of layer.

    Attributes:
        branches: What a layer adds, by kind of block and in order.
        bind: (layer, arguments of the layer's call after the residual stream) -> what the branches read.
    """

    branches: Mapping[str, Branch]
    bind: Callable[..., Any]


DECODER = Family(
    {"sa": decoder_self_attention, "ca": decoder_cross_attention, "ff": decoder_feed_forward},
    lambda layer, *args, **kwargs: DecoderCall(*args, **kwargs),
)
DIT = Family({"sa": dit_self_attention, "ff": dit_feed_forward}, DiTCall)
ADA_ZERO = Family({"sa": ada_zero_self_attention, "ff": ada_zero_feed_forward}, AdaZeroCall)


@dataclass(frozen=True)
class Stack:
    """The cacheable part of a policy's network.

    Attributes:
        network: Called as (noisy actions [B, T, Da], diffusion step, condition).
        layers: Its residual layers in order.
        family: Their kind.
        host: The policy that the network belongs to, where one was given.
        wrapper: What `torch.compile` made of the network, where the policy calls that.
    """

    network: nn.Module
    layers: tuple[nn.Module, ...]
    family: Family
    host: "DenoiserHost | None"
    wrapper: nn.Module | None = None

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names `layer0.sa`, `layer0.ca`, ... of all blocks in order."""
        return tuple(f"layer{i}.{kind}" for i in range(len(self.layers)) for kind in self.family.branches)

    def fingerprint(self) -> str:
        """Return a hash of the network's weights: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def find_stack(policy: Any) -> Stack:
    """Return the cacheable part of a policy, a host or a network.

    Args:
        policy: A `DenoiserHost`, a policy of the original library or of LeRobot's multi-task DiT type, a diffusers
            pipeline with a DiT as its `transformer`, or a network.

    Raises:
        UnsupportedHostError: When it has no stack of known layers, or one with post-norm.
        InputError: When it is in training mode.
    """
    called, host = _network(policy)
    network = getattr(called, "_orig_mod", called)
    kinds = ((_is_decoder, DECODER), (_is_dit, DIT), (_is_ada_zero, ADA_ZERO))
    found = [(family, [m for m in network.modules() if known(m)]) for known, family in kinds]
    family, layers = next((pair for pair in found if pair[1]), (DECODER, []))
    if not layers:
        raise UnsupportedHostError(
            f"{type(network).__name__} has no transformer layers to cache: expected nn.TransformerDecoderLayer "
            "or DiT layers; U-Net policies are not supported"
        )
    if family is DECODER and not all(layer.norm_first for layer in layers):
        raise UnsupportedHostError(
            "the decoder layers normalise after the residual addition (norm_first=False), where outputs cannot "
            "be cached; only pre-norm layers are supported"
        )
    if network.training:
        raise InputError(
            "the network is in training mode, in which dropout changes outputs; call .eval() first"
        )
    return Stack(network, tuple(layers), family, host, None if called is network else called)


def eager_parts(stack: Stack) -> list[Replace]:
    """Return what lets calls of a compiled network run its Python code, in which alone blocks can be skipped."""
    parts = [] if stack.wrapper is None else [Replace(stack.wrapper, "forward", stack.network.__call__)]
    for module in stack.network.modules():
        if vars(module).get("_compiled_call_impl") is not None:
            parts.append(Replace(module, "_compiled_call_impl", None))
    return parts


def _network(policy: Any) -> tuple[nn.Module, "DenoiserHost | None"]:
    if isinstance(getattr(policy, "noise_predictor", None), nn.Module):
        return policy.noise_predictor, None
    if not isinstance(policy, nn.Module) and isinstance(getattr(policy, "transformer", None), nn.Module):
        return policy.transformer, None
    whole = hasattr(policy, "denoise") or hasattr(policy, "noise_scheduler")
    if (
        isinstance(policy, nn.Module)
        and not whole
        and not hasattr(getattr(policy, "diffusion", None), "unet")
    ):
        return policy, None
    host = as_host(policy)
    network = getattr(host, "net", getattr(host, "model", None))
    if not isinstance(network, nn.Module):
        raise UnsupportedHostError(
            f"{type(policy).__name__} holds no network as `net` or `model`; pass the network itself"
        )
    return network, host


def _is_decoder(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerDecoderLayer)


def _is_dit(module: nn.Module) -> bool:
    parts = ("norm1", "norm2", "mlp", "adaLN_modulation")
    attention = hasattr(module, "attn") or hasattr(module, "multihead_attn")
    return attention and all(hasattr(module, name) for name in parts)


def _is_ada_zero(module: nn.Module) -> bool:
    if getattr(module, "norm_type", None) != "ada_norm_zero":
        return False
    parts = all(hasattr(module, name) for name in ("norm1", "attn1", "norm3", "ff"))
    return parts and getattr(module, "attn2", None) is None
