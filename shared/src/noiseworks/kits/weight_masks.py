"""Masks on the weights of a module's linear layers, without a change to the weights."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Attachment, Wrap, attach
from torch import Tensor, nn

Mask = Tensor | Callable[[Tensor], Tensor]


def mask_weights(module: nn.Module, masks: Mapping[str, Mask], name: str) -> Attachment:
    """Let linear layers run with masked weights: w becomes m * w, the bias stays.

    A layer that peft has wrapped for LoRA is masked beneath its adapters. Masks that are given as tensors may be
    changed in place or require gradients.

    Args:
        module: The module that holds the layers.
        masks: Qualified name of an `nn.Linear` -> its mask: a tensor that broadcasts to the weight
            `[out, in]` (`[out, 1]` masks whole rows), or `[rows, out, in]` for a mask of its own for each batch
            row; or a function from the layer's input to such a tensor.
        name: The method's name; a layer takes each name once.

    Returns:
        A handle with `detach()`, which is also a context manager.

    Raises:
        InputError: When there is no mask, no layer of a name, or a mask of another shape.
        UnsupportedHostError: When what a name stands for is no linear layer with floating-point weights.
    """
    if not masks:
        raise InputError("no layer to mask: the masks are empty")
    parts = []
    for path, mask in masks.items():
        layer = linear_of(module, path)
        if isinstance(mask, Tensor):
            _check_shape(path, layer, mask)
        parts.append(Wrap(layer, _masked(path, layer, mask)))
    return attach(name, parts)


def linear_of(module: nn.Module, path: str) -> nn.Linear:
    """Return a linear layer by its path: the base layer where peft has wrapped it.

    Args:
        module: The module that holds it.
        path: Its qualified name.

    Raises:
        InputError: When there is no such layer.
        UnsupportedHostError: When it is no linear layer with floating-point weights (a quantised one, for example).
    """
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        raise InputError(f"{type(module).__name__} has no layer {path!r} to mask") from None
    layer = getattr(layer, "base_layer", layer)
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise UnsupportedHostError(f"{path} is a {type(layer).__name__}: only nn.Linear layers can be masked")
    return layer


def _masked(path: str, layer: nn.Linear, mask: Mask) -> Callable[..., Tensor]:
    def forward(beneath: Callable[..., Tensor], x: Tensor) -> Tensor:
        chosen = mask
        if not isinstance(chosen, Tensor):
            chosen = chosen(x)
            _check_shape(path, layer, chosen)
        weight = layer.weight * chosen.to(layer.weight)
        if weight.ndim == 2:
            return F.linear(x, weight, layer.bias)
        if len(weight) != len(x):
            raise InputError(f"the mask of {path} is for {len(weight)} batch rows, the input has {len(x)}")
        out = torch.einsum("b...i,boi->b...o", x, weight)
        return out if layer.bias is None else out + layer.bias

    return forward


def _check_shape(path: str, layer: nn.Linear, mask: Tensor) -> None:
    fits = mask.ndim in (2, 3) and all(
        got in (1, want) for got, want in zip(mask.shape[-2:], layer.weight.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"the mask of {path} has shape {tuple(mask.shape)}, which does not fit weights "
            f"{tuple(layer.weight.shape)}"
        )
