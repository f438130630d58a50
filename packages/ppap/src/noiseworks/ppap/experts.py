"""Experts: one frozen network, and for each interval of the timesteps the little that differs from it.

The network is held once. An expert's weights are made of it when they are asked for, W + alpha / rank x change, and
stand in for its own in a functional call; the released code holds N whole networks.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.ppap.options import Adapters
from noiseworks.ppap.routing import owner
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

# conv1 and conv2 of ResNets' blocks and stem (torchvision), and the attention of vision transformers (timm).
PUBLISHED = r"(^|\.)(conv1|conv2|attn\.qkv|attn\.proj)$"
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def adapted_layers(base: nn.Module, targets: str = "auto") -> dict[str, nn.Module]:
    """Return the layers whose weights get low-rank changes: linear ones and convolutions with square kernels.

    Args:
        base: The network.
        targets: A regular expression that is searched in their names, or auto.

    Raises:
        InputError: When it is no expression, or names none.
    """
    fit = {
        name: layer
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
        or (
            isinstance(layer, nn.Conv2d)
            and layer.groups == 1
            and layer.kernel_size[0] == layer.kernel_size[1]
        )
    }
    try:
        pattern = re.compile(PUBLISHED if targets == "auto" else targets)
    except re.error as error:
        raise InputError(f"targets {targets!r} is no regular expression: {error}") from error
    found = {name: layer for name, layer in fit.items() if pattern.search(name)}
    if not found and targets == "auto":
        found = dict(list(fit.items())[:-1])
    if not found:
        raise InputError(f"targets {targets!r} names none of the layers {', '.join(fit)}")
    return found


def low_rank_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of A and B: [rank k, in k] and [out k, rank k] for a kernel of side k, 1 for linear layers."""
    k = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1
    outs, ins = layer.weight.shape[:2]
    return (rank * k, ins * k), (outs * k, rank * k)


def free_names(base: nn.Module) -> list[str]:
    """Return the parameters that each expert has whole: all biases but the last layer's, and the norms' weights."""
    last = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1:]
    norms = {f"{name}.weight" for name, layer in base.named_modules() if isinstance(layer, NORMS)}
    return [
        name
        for name, _ in base.named_parameters()
        if name in norms or (name.rpartition(".")[2] == "bias" and name.rpartition(".")[0] not in last)
    ]


class Expert(nn.Module):
    """What differs from the network for one interval.

    Args:
        base: The network.
        settings: What differs.
        seed: Of A; B is 0, so that an expert is the network at first.
    """

    def __init__(self, base: nn.Module, settings: Adapters, seed: int = 0) -> None:
        super().__init__()
        self.scale, whole = settings.alpha / settings.rank, settings.tuned == "all"
        self.a, self.b, self.free = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        device, generator = next(base.parameters()).device, torch.Generator().manual_seed(mix64(seed) >> 2)
        for name, layer in {} if whole else adapted_layers(base, settings.targets).items():
            a, b = low_rank_shapes(layer, settings.rank)
            # Kaiming's uniform with a = sqrt(5), as the published layers begin
            drawn = torch.empty(a).uniform_(-1, 1, generator=generator) / math.sqrt(a[1])
            self.a[_key(name)] = nn.Parameter(drawn.to(device))
            self.b[_key(name)] = nn.Parameter(torch.zeros(b, device=device))
        for name in dict(base.named_parameters()) if whole else free_names(base):
            self.free[_key(name)] = nn.Parameter(base.get_parameter(name).detach().clone())
        for name, layer in base.named_modules():
            if isinstance(layer, _BatchNorm):  # its statistics are those of the noise that the expert saw
                for key, value in layer.named_buffers(recurse=False):
                    self.register_buffer(_key(f"{name}.{key}"), value.detach().clone())

    def weights(self, base: nn.Module) -> dict[str, Tensor]:
        """Return what stands in for the network's own parameters and buffers; gradients reach the expert's."""
        found = {_name(key): value for key, value in self.free.items()}
        for key, a in self.a.items():
            own = base.get_parameter(f"{_name(key)}.weight")
            # For a kernel of side k the product [out k, in k] is read as [out, in, k, k], as published.
            found[f"{_name(key)}.weight"] = own + self.scale * (self.b[key] @ a).view_as(own)
        return found | {_name(key): value for key, value in self.named_buffers()}


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")


class Experts(nn.Module):
    """A guide's network for noisy images: rows go to the experts that own their timesteps.

    Args:
        base: The network, which is frozen.
        bounds: N + 1 bounds of the experts' intervals.
        settings: What differs.
        seed: Of the first values.
    """

    def __init__(
        self, base: nn.Module, bounds: Sequence[int], settings: Adapters = Adapters(), seed: int = 0
    ) -> None:
        super().__init__()
        self.bounds, self.settings = list(bounds), settings
        self.parts = nn.ModuleList(Expert(base, settings, mix64(seed, n)) for n in range(len(bounds) - 1))
        self._base = (
            base.requires_grad_(False).eval(),
        )  # in a tuple: it is no part of what is trained and saved
        self._last: tuple[int, Mapping[str, Tensor]] | None = None

    @property
    def base(self) -> nn.Module:
        """The network."""
        return self._base[0]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return outputs for what the network is given of noisy images.

        Args:
            x: (B, ...).
            t: Timesteps (B,) or ().
        """
        owners = owner(t, self.bounds).expand(len(x))
        present = owners.unique().tolist()
        if len(present) == 1:
            return _tensor(functional_call(self.base, self._weights(present[0]), (x,)))
        found: Tensor | None = None
        for n in present:
            rows = (owners == n).nonzero()[:, 0].to(x.device)
            part = _tensor(functional_call(self.base, self._weights(n), (x[rows],)))
            found = part.new_zeros((len(x), *part.shape[1:])) if found is None else found
            found = found.index_copy(0, rows, part)
        return found

    def forget(self) -> None:
        """Drop kept weights, after a change of the experts."""
        self._last = None

    def _weights(self, n: int) -> Mapping[str, Tensor]:
        """Return an expert's weights, made once for as long as the sampler stays in its interval."""
        if self.training:
            return self.parts[n].weights(self.base)
        if self._last is None or self._last[0] != n:
            with torch.no_grad():
                self._last = n, self.parts[n].weights(self.base)
        return self._last[1]


def _tensor(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
