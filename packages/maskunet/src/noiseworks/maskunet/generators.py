"""The mask generators: from what a block sees (its features and the timestep) to the logits of its layers' weights.

z' = FC(temb) + GAP(z) (eq. 2); a small network makes a coarse mask M [n_o, n_i] of it (eq. 3), which every layer of the
block expands, rows then columns: A = P_o M + b_o, L = A P_i' + b_i (eq. 4).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from noiseworks.maskunet.masked_linear import Logits
from noiseworks.maskunet.options import MaskConfig
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerShape:
    """A linear layer that is masked.

    Attributes:
        outs: Output channels.
        ins: Input channels.
        heads: Heads of the attention that it belongs to, or 0.
        heads_in: Whether the heads are groups of its inputs (an output projection) and not of its outputs.
    """

    outs: int
    ins: int
    heads: int = 0
    heads_in: bool = False

    @property
    def groups(self) -> int:
        """Units of the granularity `head`; a layer of no attention has its output channels."""
        return self.heads or self.outs


@dataclass(frozen=True)
class BlockShape:
    """A block and its masked layers.

    Attributes:
        features: Channels of its input, with the skip connection.
        outs: Output channels.
        times: Width of the time embedding.
        layers: Path -> layer.
    """

    features: int
    outs: int
    times: int
    layers: Mapping[str, LayerShape]


class BlockMasks(nn.Module):
    """The generator of one block, and what its layers make of it.

    Args:
        shape: The block.
        config: The configuration.
    """

    def __init__(self, shape: BlockShape, config: MaskConfig) -> None:
        super().__init__()
        self.config = config
        self.coarse = (shape.outs // config.factor, shape.features // config.factor)
        expands = config.granularity == "element" and config.generator in ("paper", "released")
        if config.generator != "static":
            self.time = nn.Linear(shape.times, shape.features, bias=False)
            self.first = nn.Linear(shape.features, config.hidden)
        if expands:
            self.last = nn.Linear(config.hidden, self.coarse[0] * self.coarse[1])
            if config.generator == "released":
                nn.init.zeros_(self.last.weight)
            else:
                nn.init.kaiming_normal_(self.last.weight)
                with torch.no_grad():
                    self.last.weight.mul_(0.1)
            nn.init.zeros_(self.last.bias)
        self.layers = nn.ModuleDict({key_of(path): self._layer(one) for path, one in shape.layers.items()})

    def _layer(self, layer: LayerShape) -> nn.Module:
        config = self.config
        if config.granularity != "element":
            units = layer.outs if config.granularity == "row" else layer.groups
            return UnitLogits(None if config.generator == "static" else config.hidden, units, config)
        if config.generator == "static":
            return StaticLogits(layer, config)
        if config.generator == "rank-k":
            return RankLogits(layer, config)
        return Expander(layer, self.coarse, config)

    def feature(self, pooled: Tensor, times: Tensor) -> Tensor | None:
        """Return what the layers share: M [B, n_o, n_i], the hidden features [B, hidden], or None for static masks.

        Args:
            pooled: GAP(z) [B, features].
            times: Time embedding [B or 1, width].
        """
        config = self.config
        if config.generator == "static":
            return None
        parts = {"sample": pooled.float(), "time": self.time(times.float().expand(len(pooled), -1))}
        z = sum(parts.values()) if config.conditioning == "both" else parts[config.conditioning]  # z' (eq. 2)
        hidden = torch.relu(self.first(z))
        if not hasattr(self, "last"):
            return hidden
        coarse = self.last(hidden)
        if config.generator == "released":
            coarse = torch.relu(coarse)
        return coarse.view(-1, *self.coarse)

    def logits(self, path: str, feature: Tensor | None) -> "Logits | Tensor":
        """Return a layer's logits: of its weights, or [B or 1, units] for rows and heads."""
        return self.layers[key_of(path)](feature)


def key_of(path: str) -> str:
    """Return a layer's path as the name of a submodule, which holds no dots."""
    return path.replace(".", "/")


class Expander(nn.Module):
    """L = (P_o M + b_o) P_i' + b_i + b (eq. 4), read as [P_o, b_o] [M P_i', 1 P_i'] + b_i + b.

    Both are the same numbers. The second way is of lower rank, because M has fewer rows than columns (the input of a
    block of the up path has more channels than its output), and costs about half.

    `released` begins at P = 0 and b_o = b_i = 5, so that neither P_o nor the generator ever gets a gradient (the last
    ReLU has none at 0 either). `paper` has small random P, b_o = b_i = 0 and a number b instead.
    """

    def __init__(self, layer: LayerShape, coarse: tuple[int, int], config: MaskConfig) -> None:
        super().__init__()
        released = config.generator == "released"
        self.p_out = nn.Parameter(torch.empty(layer.outs, coarse[0]))
        self.p_in = nn.Parameter(torch.empty(layer.ins, coarse[1]))
        for weights in (self.p_out, self.p_in):
            nn.init.zeros_(weights) if released else nn.init.normal_(weights, std=0.02)
        start = 5.0 if released else 0.0
        self.b_out = nn.Parameter(torch.full((layer.outs,), start))
        self.b_in = nn.Parameter(torch.full((layer.ins,), start))
        self.offset = None if released else nn.Parameter(torch.tensor(config.init_logit))

    def forward(self, coarse: Tensor) -> Logits:
        """Return the logits of coarse masks M [B, n_o, n_i], of rank n_o + 1."""
        a = torch.cat([self.p_out, self.b_out[:, None]], 1)
        sums = self.p_in.sum(1)[None, :, None].expand(len(coarse), -1, 1)
        p = torch.cat([self.p_in @ coarse.transpose(1, 2), sums], 2)
        c = self.b_in if self.offset is None else self.b_in + self.offset
        return Logits(a[None], p, c)

    def expanded(self, coarse: Tensor) -> Logits:
        """Return the same logits in the released order, rows first and then columns, of rank n_i."""
        a = self.p_out @ coarse + self.b_out[:, None]
        return Logits(a, self.p_in[None], self.b_in if self.offset is None else self.b_in + self.offset)


class RankLogits(nn.Module):
    """L = u v' + b with u and v of rank k from the hidden features: the smallest of the generators."""

    def __init__(self, layer: LayerShape, config: MaskConfig) -> None:
        super().__init__()
        self.u = nn.Linear(config.hidden, layer.outs * config.rank)
        self.v = nn.Linear(config.hidden, layer.ins * config.rank)
        for part in (self.u, self.v):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.normal_(part.bias, std=0.1)
        self.shape = (layer.outs, layer.ins, config.rank)
        self.offset = nn.Parameter(torch.tensor(config.init_logit))

    def forward(self, hidden: Tensor) -> Logits:
        """Return the logits of hidden features [B, hidden]."""
        outs, ins, rank = self.shape
        return Logits(self.u(hidden).view(-1, outs, rank), self.v(hidden).view(-1, ins, rank), self.offset)


class StaticLogits(nn.Module):
    """One logit a weight, the same at all timesteps and for all samples."""

    def __init__(self, layer: LayerShape, config: MaskConfig) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((1, layer.outs, layer.ins), config.init_logit))

    def forward(self, feature: None) -> Logits:
        """Return the logits [1, out, in]."""
        return Logits(self.values)


class UnitLogits(nn.Module):
    """One logit a row or head: masks that scale activations, without weights of their own for each sample."""

    def __init__(self, hidden: int | None, units: int, config: MaskConfig) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.full((units,), config.init_logit))
        self.project = None if hidden is None else nn.Linear(hidden, units, bias=False)
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, hidden: Tensor | None) -> Tensor:
        """Return [B, units], or [1, units] of static ones."""
        return self.offset[None] if self.project is None else self.project(hidden) + self.offset
