"""Heads, neurons and modulation outputs of a denoiser: found, masked while the host runs, and removed for good.

A unit acts on the rest of the network through input columns of an output layer (a head through D columns of
`to_out.0`, a neuron through one column of `net.2`), so that masking it is a product in front of that layer: whatever
computes the attention stays as it is, and nothing is computed twice.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Attachment, Wrap, attach, attached_to
from noiseworks.kits.diffusers_hosts import pruned_denoiser
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of, layout_of
from noiseworks.kits.diffusers_hosts.pruned_denoiser import Group
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAMILIES = ("attn", "ffn", "norm")
Masks = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Units:
    """The units of a denoiser that may be removed.

    Attributes:
        groups: Path -> group, in the network's order.
        prices: Path -> parameters that one unit of it holds.
        rests: Path -> parameters that go with the last unit: the norms of an attention layer's heads.
        total: Parameters of the whole network.
    """

    groups: Mapping[str, Group]
    prices: Mapping[str, int]
    rests: Mapping[str, int]
    total: int

    @property
    def prunable(self) -> int:
        """Parameters that all units hold together."""
        return sum(group.count * self.prices[path] for path, group in self.groups.items())

    def kept_parameters(self, kept: Mapping[str, Sequence[int]]) -> int:
        """Return how many parameters the network has with some units only; a group that is not named is whole."""
        gone = 0
        for path, numbers in kept.items():
            gone += (self.groups[path].count - len(numbers)) * self.prices[path]
            gone += 0 if len(numbers) else self.rests[path]
        return self.total - gone


def find_units(
    model: nn.Module,
    families: Sequence[str] = ("attn", "ffn"),
    include: str | None = None,
    exclude: str | None = None,
    min_heads: int = 1,
) -> Units:
    """Find the units of a denoiser.

    Args:
        model: The UNet or transformer.
        families: Which kinds: "attn", "ffn", "norm".
        include: Regular expression that a module's path must contain a match of.
        exclude: One that it must contain no match of.
        min_heads: Attention layers with fewer heads are left out.

    Raises:
        InputError: When an expression is none, or nothing is left.
        UnsupportedHostError: When projections are fused.
    """
    for path, module in model.named_modules():
        if getattr(module, "fused_projections", False):
            raise UnsupportedHostError(f"{path} has fused projections: call unfuse_qkv_projections() first")
    try:
        wanted = re.compile(include or "")
        unwanted = None if exclude is None else re.compile(exclude)
    except re.error as error:
        raise InputError(f"{include!r} or {exclude!r} is no regular expression: {error}") from None
    groups = {
        group.path: group
        for group in pruned_denoiser.groups_of(model)
        if group.kind in families
        and wanted.search(group.path)
        and not (unwanted is not None and unwanted.search(group.path))
        and not (group.kind == "attn" and group.count < min_heads)
    }
    if not groups:
        raise InputError(
            f"{type(model).__name__} has no units of {', '.join(families)} where include is {include!r} and "
            f"exclude {exclude!r}"
        )
    prices = {path: _price(model, group) for path, group in groups.items()}
    rests = {path: _rest(model, group) for path, group in groups.items()}
    return Units(groups, prices, rests, sum(p.numel() for p in model.parameters()))


def _price(model: nn.Module, group: Group) -> int:
    rows = [model.get_submodule(path) for path in group.rows]
    columns = [model.get_submodule(path) for path, _ in group.columns]
    per_line = sum(group.copies * (one.in_features + (one.bias is not None)) for one in rows)
    return group.width * (per_line + sum(one.out_features for one in columns))


def _rest(model: nn.Module, group: Group) -> int:
    if group.kind != "attn":
        return 0
    layers = model.get_submodule(group.path).named_parameters()
    return sum(weight.numel() for name, weight in layers if name.startswith("norm_"))


def mask_units(model: nn.Module, units: Units, masks: Masks, name: str) -> Attachment:
    """Let a denoiser run with its units multiplied by masks; the weights stay.

    Args:
        model: The UNet or transformer.
        units: Its units.
        masks: Path -> mask `[count]` or `[rows, count]`, or a function that returns them at every call of a layer.
            Masks may require gradients.
        name: The method's name.

    Returns:
        A handle with `detach()`, which is also a context manager.
    """
    read = masks if callable(masks) else lambda: masks
    parts = []
    for path, group in units.groups.items():
        for layer, first in group.columns or ((group.rows[0], None),):
            parts.append(Wrap(model.get_submodule(layer), _masked(path, group, first, read)))
    return attach(name, parts)


def _masked(path: str, group: Group, first: int | None, read: Callable) -> Callable[..., Tensor]:
    def of(tokens: Tensor) -> Tensor:
        mask = read()[path].to(tokens)
        mask = mask.repeat_interleave(group.width, dim=-1) if group.width > 1 else mask
        # a mask a row, in front of the tokens' axes
        return mask if mask.ndim == 1 else mask.unflatten(0, (-1, *[1] * (tokens.ndim - 2)))

    def inputs(beneath: Callable[..., Tensor], x: Tensor) -> Tensor:
        mask = of(x)
        last = first + mask.shape[-1]
        if (first, last) == (0, x.shape[-1]):
            return beneath(x * mask)
        return beneath(torch.cat([x[..., :first], x[..., first:last] * mask, x[..., last:]], dim=-1))

    def outputs(beneath: Callable[..., Tensor], x: Tensor) -> Tensor:
        out = beneath(x)
        return out * of(out)

    return outputs if first is None else inputs


def remove_units(pipe: "DiffusionPipeline", kept: Mapping[str, Sequence[int]]) -> None:
    """Remove all but some units of a pipeline's denoiser, in place.

    The pipeline is then an ordinary smaller one: it saves with `save_pretrained`, and loads anywhere with
    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` (see `pruned_denoiser`), or here with
    `load_pipeline`, which runs none of the folder's code.

    Args:
        pipe: The pipeline.
        kept: Path of a group -> numbers of the units that stay; groups that are not named stay whole.

    Raises:
        InputError: When a path or number is none, or a method is attached.
        UnsupportedHostError: When its denoiser has no pruned form, or carries LoRA.
    """
    model = denoiser_of(pipe)
    if any(attached_to(module) for module in model.modules()):
        raise InputError("a method is attached to this denoiser: detach() it before units are removed")
    for path, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise UnsupportedHostError(f"{path} carries LoRA: fuse or unload it before units are removed")
    try:
        pruned = pruned_denoiser.prune(model, {path: sorted(units) for path, units in kept.items()})
    except TypeError as error:
        raise UnsupportedHostError(str(error)) from None
    except (ValueError, AttributeError) as error:
        raise InputError(f"these units cannot be kept: {error}") from None
    setattr(pipe, layout_of(pipe).component, pruned)
