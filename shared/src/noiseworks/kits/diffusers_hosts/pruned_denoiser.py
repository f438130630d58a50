"""Diffusion networks of which attention heads, feed-forward neurons or modulation outputs were removed.

This file is written into the folder of every network that it makes, because a configuration of diffusers cannot say
"eleven heads here, three there". It needs torch and diffusers alone:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

A unit is a head, a neuron, or an output of a modulation (adaLN) layer. Units of one module are its group.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    ModelMixin,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxSingleTransformerBlock
from torch import Tensor, nn

KEY = "kept_units"  # of the configuration: path -> number of units
FILE = "pruned_denoiser"
_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
_MODULATIONS = (AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX)

Kind = Literal["attn", "ffn", "norm"]


@dataclass(frozen=True)
class Group:
    """The units of one module.

    Attributes:
        path: The module's path; a FLUX single block stands for its feed-forward part.
        kind: "attn", "ffn" or "norm".
        count: Number of units.
        width: Rows and columns of a unit: D for heads of width D, 1 for neurons.
        rows: Paths of the layers whose output rows belong to the units.
        copies: How often the units follow each other in those rows: 2 for GEGLU (value and gate).
        columns: Paths of the layers whose input columns belong to the units, and the first such column.
    """

    path: str
    kind: Kind
    count: int
    width: int
    rows: tuple[str, ...]
    copies: int = 1
    columns: tuple[tuple[str, int], ...] = ()


def groups_of(model: nn.Module) -> Iterator[Group]:
    """Yield the groups of a network in its own order; what is not understood is left out."""
    for path, module in model.named_modules():
        group = group_of(model, path, module)
        if group is not None and group.count:
            yield group


def group_of(model: nn.Module, path: str, module: nn.Module) -> Group | None:
    """Return the group of one module, at its present sizes, or None where it has none."""
    if isinstance(module, Attention | FluxAttention):
        return _heads(model, path, module)
    if isinstance(module, FluxSingleTransformerBlock):
        count = module.proj_mlp.out_features
        first = module.proj_out.in_features - count
        return Group(path, "ffn", count, 1, (f"{path}.proj_mlp",), columns=((f"{path}.proj_out", first),))
    if isinstance(module, FeedForward) and isinstance(module.net[0], GEGLU | GELU):
        count = module.net[2].in_features
        copies = 2 if isinstance(module.net[0], GEGLU) else 1
        return Group(path, "ffn", count, 1, (f"{path}.net.0.proj",), copies, ((f"{path}.net.2", 0),))
    if isinstance(module, _MODULATIONS) and isinstance(module.linear, nn.Linear):
        return Group(path, "norm", module.linear.out_features, 1, (f"{path}.linear",))
    return None


def _heads(model: nn.Module, path: str, module: nn.Module) -> Group | None:
    inner = module.to_q.out_features
    width = inner // module.heads
    rows = [name for name in _PROJECTIONS if getattr(module, name, None) is not None]
    same = all(getattr(module, name).out_features == inner for name in rows)
    scales = [getattr(getattr(module, name, None), "weight", None) for name in ("norm_q", "norm_k")]
    across = any(scale is not None and len(scale) != width for scale in scales)
    # Grouped keys and norms over all heads tie the heads together; a residual inside is not the block's.
    if not same or across or getattr(module, "residual_connection", False):
        return None
    columns = []
    if getattr(module, "to_out", None) is not None:
        columns.append((f"{path}.to_out.0", 0))
    if getattr(module, "to_add_out", None) is not None:
        columns.append((f"{path}.to_add_out", 0))
    if not columns:  # a FLUX single block: the heads are the first columns of the block's output layer
        parent = path.rpartition(".")[0]
        columns.append((f"{parent}.proj_out", 0))
    layers = tuple(f"{path}.{name}" for name in rows)
    return Group(path, "attn", module.heads, width, layers, columns=tuple(columns))


def keep_units(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove all units but those kept, in place; groups that are not named stay whole.

    The network computes what it computed with the other units' outputs set to zero.

    Args:
        model: The network.
        kept: Path of a group -> numbers of the units that stay, ascending.

    Raises:
        ValueError: When a path holds no group or a number is no unit of it.
    """
    for path, numbers in kept.items():
        module = model.get_submodule(path)
        group = group_of(model, path, module)
        numbers = list(numbers)
        if group is None or any(not 0 <= n < group.count for n in numbers):
            raise ValueError(f"{path} of {type(model).__name__} has no such units to keep")
        if len(numbers) == group.count:
            continue
        if group.kind == "norm":
            module.linear = ScatteredLinear(module.linear, numbers)
        elif group.kind == "attn" and not numbers:
            _drop_attention(model, group, module)
        else:
            _cut(model, group, module, numbers)


def _cut(model: nn.Module, group: Group, module: nn.Module, numbers: Sequence[int]) -> None:
    units = torch.tensor(numbers, dtype=torch.int64)
    lines = (units[:, None] * group.width + torch.arange(group.width)).flatten()
    whole = group.count * group.width
    for path in group.rows:
        _take(model.get_submodule(path), torch.cat([lines + copy * whole for copy in range(group.copies)]), 0)
    for path, first in group.columns:
        _cut_columns(model.get_submodule(path), lines, first, whole)
    if group.kind == "attn":
        module.heads, module.inner_dim = len(numbers), len(lines)
        for name in ("inner_kv_dim", "sliceable_head_dim"):
            if hasattr(module, name):
                setattr(module, name, len(lines) if name == "inner_kv_dim" else len(numbers))


def _cut_columns(linear: nn.Linear, lines: Tensor, first: int, whole: int) -> None:
    before, after = torch.arange(first), torch.arange(first + whole, linear.in_features)
    _take(linear, torch.cat([before, lines + first, after]), 1)
    if hasattr(
        linear, "_tp_packed_row_blocks"
    ):  # FLUX: columns of the attention and of the feed-forward part
        attention, neurons = linear._tp_packed_row_blocks
        gone = whole - len(lines)
        linear._tp_packed_row_blocks = [attention - gone * (first == 0), neurons - gone * (first != 0)]


def _take(linear: nn.Linear, lines: Tensor, dim: int) -> None:
    weight, bias = linear.weight, linear.bias
    lines = lines.to(weight.device)
    linear.weight = nn.Parameter(weight.detach().index_select(dim, lines), weight.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape
    if dim == 0 and bias is not None:
        linear.bias = nn.Parameter(bias.detach().index_select(0, lines), bias.requires_grad)


def _drop_attention(model: nn.Module, group: Group, module: nn.Module) -> None:
    parent, _, name = group.path.rpartition(".")
    if getattr(module, "to_out", None) is None:
        whole = group.count * group.width
        _cut_columns(model.get_submodule(group.columns[0][0]), torch.arange(0), 0, whole)
    setattr(model.get_submodule(parent), name, ConstantAttention(module))


class ConstantAttention(nn.Module):
    """An attention layer without heads: what it puts out is the bias of its output layer.

    Args:
        attention: The layer whose place it takes.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        out, context = getattr(attention, "to_out", None), getattr(attention, "to_add_out", None)
        self.bias = None if out is None else out[0].bias
        self.context_bias = None if context is None else context.bias
        self.out_features = 0 if out is None else out[0].out_features
        self.joint = attention.add_q_proj is not None if hasattr(attention, "add_q_proj") else False
        self.scale = 1 / getattr(attention, "rescale_output_factor", 1.0)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        """Return the bias at every token, for both streams where there are two."""
        if not self.out_features:
            return hidden_states[..., :0]
        out = self._constant(hidden_states, self.bias)
        if not self.joint or encoder_hidden_states is None:
            return out
        return out, self._constant(encoder_hidden_states, self.context_bias)

    def _constant(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        zeros = tokens.new_zeros(*tokens.shape[:-1], self.out_features)
        return zeros if bias is None else zeros + bias * self.scale


class ScatteredLinear(nn.Module):
    """A linear layer some of whose outputs are zero and not computed.

    Args:
        linear: The layer whose place it takes.
        kept: Numbers of the outputs that are computed.
    """

    def __init__(self, linear: nn.Linear, kept: Sequence[int]) -> None:
        super().__init__()
        index = torch.tensor(list(kept), dtype=torch.int64, device=linear.weight.device)
        self.out_features = linear.out_features
        self.weight = nn.Parameter(linear.weight.detach()[index], linear.weight.requires_grad)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach()[index], linear.bias.requires_grad)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, zero where there is none."""
        some = F.linear(x, self.weight, self.bias)
        out = some.new_zeros(*some.shape[:-1], self.out_features)
        return out.index_copy(-1, self.index, some)


class _Pruned:
    """What the networks below add to diffusers' own: their configuration says how many units each group has."""

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a network of the sizes that the configuration says; the arguments are diffusers' own."""
        config = dict(config)
        counts = dict(config.pop(KEY))
        made = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        model = made[0] if return_unused_kwargs else made
        keep_units(model, {path: range(count) for path, count in counts.items()})
        model.register_to_config(**{KEY: counts})
        return made

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, and this file beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        shutil.copyfile(__file__, Path(save_directory) / f"{FILE}.py")


# diffusers writes the module's name into `model_index.json` and looks for that file in the network's folder, or among
# the imported modules, which then must name the base class (`ModelMixin`) as diffusers' own do.
sys.modules.setdefault(FILE, sys.modules[__name__])


class PrunedUNet2DConditionModel(_Pruned, UNet2DConditionModel):
    """The U-Net of Stable Diffusion 1, 2 and XL with fewer units."""

    __module__ = FILE


class PrunedSD3Transformer2DModel(_Pruned, SD3Transformer2DModel):
    """The transformer of Stable Diffusion 3 with fewer units."""

    __module__ = FILE


class PrunedFluxTransformer2DModel(_Pruned, FluxTransformer2DModel):
    """The transformer of FLUX with fewer units."""

    __module__ = FILE


class PrunedPixArtTransformer2DModel(_Pruned, PixArtTransformer2DModel):
    """The transformer of PixArt with fewer units."""

    __module__ = FILE


class PrunedDiTTransformer2DModel(_Pruned, DiTTransformer2DModel):
    """The transformer of DiT with fewer units."""

    __module__ = FILE


CLASSES: Iterable[type] = (
    PrunedUNet2DConditionModel,
    PrunedSD3Transformer2DModel,
    PrunedFluxTransformer2DModel,
    PrunedPixArtTransformer2DModel,
    PrunedDiTTransformer2DModel,
)


def prune(model: ModelMixin, kept: Mapping[str, Sequence[int]]) -> ModelMixin:
    """Remove units for good: as `keep_units`, and the network becomes one that saves and loads at its new sizes.

    Args:
        model: A network of diffusers, pruned before or not; changed in place.
        kept: As in `keep_units`.

    Raises:
        TypeError: When there is no pruned form of its class.
        ValueError: As `keep_units`.
    """
    cls = next((one for one in CLASSES if isinstance(model, one.__mro__[2])), None)
    if cls is None:
        raise TypeError(f"{type(model).__name__} has no pruned form")
    keep_units(model, kept)
    model.__class__ = cls
    counts = {**(model.config.get(KEY) or {}), **{path: len(list(units)) for path, units in kept.items()}}
    model.register_to_config(**{KEY: counts})
    return model
