"""The cascade diffusion decoder (section 3.3): queries look at the view along their own plans, and refine them."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDED = 64  # channels of an embedded point, half for y and half for x
PRIOR = 0.01  # of a mode being the right one, at initialisation
HEADS = 8


class Scene(NamedTuple):
    """What a backbone makes of a scene.

    Attributes:
        view: Bird's-eye features [B, C, H, W]: rows along x, columns along y, the ego in the middle.
        agents: [B, A, C].
        ego: [B, 1, C].
    """

    view: Tensor
    agents: Tensor
    ego: Tensor


class Hoisted(NamedTuple):
    """The parts of one layer that depend on the scene alone, made once for all denoising steps.

    Attributes:
        values: What is sampled along plans, [B, C, H, W].
        keys: Of the agents, [B, heads, A, C / heads].
        agent_values: Likewise.
        ego: What attention to the single ego token gives, [B, 1, C].
    """

    values: Tensor
    keys: Tensor
    agent_values: Tensor
    ego: Tensor


def embed_points(points: Tensor, size: int = EMBEDDED) -> Tensor:
    """Return sines and cosines of points, [..., T size]: y first, then x.

    Entry i of a coordinate c is sin (i even) or cos (i odd) of 2 pi c / 10000^(2 floor(i / 2) / (size / 2)).

    Args:
        points: [..., T, 2], metres.
        size: Channels of a point.
    """
    half = size // 2
    index = torch.arange(0, half, 2, device=points.device)
    scale = 2 * math.pi / 10000 ** (index.to(points.dtype) / half)
    angle = points.flip(-1)[..., None] * scale
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-4)


def embed_level(level: Tensor, width: int) -> Tensor:
    """Return sines, then cosines, of levels [B], float32 [B, width]."""
    half = width // 2
    scale = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=level.device))
    angle = level.float()[:, None] * scale
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def mlp(*sizes: int, norm: bool = False) -> nn.Sequential:
    """Return linear layers with ReLU between them, each followed by a layer norm if asked."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after))
        if index < len(sizes) - 2:
            layers.append(nn.ReLU())
            if norm:
                layers.append(nn.LayerNorm(after))
    return nn.Sequential(*layers)


class SampledView(nn.Module):
    """Weighted sum of the view's values along a plan (step 1 of the layer).

    The weights are a softmax over the plan's points of a linear map of the query, which begins at 0: uniform.

    Args:
        width: C.
        points: T.
        extent: Metres to each side of the ego that the view shows.
    """

    def __init__(self, width: int, points: int, extent: float) -> None:
        super().__init__()
        self.extent = extent
        self.value = nn.Conv2d(width, width, 3, padding=1)
        self.weights = nn.Linear(width, points)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(0.1)

    def forward(self, queries: Tensor, points: Tensor, values: Tensor) -> Tensor:
        """Return queries [B, N, C] with what lies along points [B, N, T, 2] added."""
        # The sampler's first coordinate runs along columns, which is y here.
        sampled = F.grid_sample(values, points.flip(-1) / self.extent, align_corners=False)  # [B, C, N, T]
        weights = self.weights(queries).softmax(-1)
        return queries + self.dropout(self.out(torch.einsum("bcnt,bnt->bnc", sampled, weights)))


class DecoderLayer(nn.Module):
    """One layer of the cascade: view, agents, ego, feed-forward, level, and the two heads.

    Args:
        width: C.
        points: T.
        extent: Metres of the view to each side.
        looks: Whether queries look at the view along their plans; the authors' ablation leaves it out.
        ffn_residual: Whether the feed-forward block adds its input.
        learned_skip: Whether plans are offsets to a learned share of the points, 1 at first, a number for each level;
            else to the points.
    """

    def __init__(
        self,
        width: int,
        points: int,
        extent: float,
        *,
        looks: bool = True,
        ffn_residual: bool = False,
        learned_skip: bool = False,
    ) -> None:
        super().__init__()
        self.points, self.ffn_residual = points, ffn_residual
        self.sampled = SampledView(width, points, extent) if looks else None
        self.agents = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.ego = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(0.1)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.Mish(), nn.Linear(width, 2 * width))
        self.skip = nn.Linear(width, 1) if learned_skip else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
            nn.init.ones_(self.skip.bias)
        self.score = mlp(width, width, width, 1, norm=True)
        self.plan = mlp(width, width, width, 3 * points)
        nn.init.constant_(self.score[-1].bias, -math.log((1 - PRIOR) / PRIOR))

    def hoist(self, scene: Scene) -> Hoisted:
        """Return what all denoising steps share."""
        values = scene.view if self.sampled is None else F.relu(self.sampled.value(scene.view))
        _, keys, agent_values = _projections(self.agents, scene.agents)
        # Attention to one key gives that key's value whatever the query is.
        _, _, ego_value = _projections(self.ego, scene.ego)
        ego = self.ego.out_proj(ego_value.transpose(1, 2).flatten(2))
        return Hoisted(values, keys, agent_values, ego)

    def forward(
        self, queries: Tensor, points: Tensor, hoisted: Hoisted, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return poses [B, N, T, 3] and scores [B, N] (logits).

        Args:
            queries: [B, N, C].
            points: Metres, [B, N, T, 2]; the poses are offsets to them, see `learned_skip`.
            hoisted: From `hoist`.
            level: Embedded, [B, C].
        """
        q = queries if self.sampled is None else self.sampled(queries, points, hoisted.values)
        q = self.norms[0](q + self.dropout(self._attend_agents(q, hoisted)))
        q = self.norms[1](q + self.dropout(hoisted.ego))
        forward = self.feed_forward(q)
        q = self.norms[2](q + forward if self.ffn_residual else forward)
        scale, shift = self.modulation(level)[:, None].chunk(2, dim=-1)
        q = q * (1 + scale) + shift
        poses = self.plan(q).unflatten(-1, (self.points, 3))
        heading = math.pi * poses[..., 2:].tanh()
        kept = points if self.skip is None else self.skip(level)[:, None, None] * points
        return torch.cat((poses[..., :2] + kept, heading), dim=-1), self.score(q)[..., 0]

    def _attend_agents(self, queries: Tensor, hoisted: Hoisted) -> Tensor:
        query = _project(self.agents, queries, 0)
        found = F.scaled_dot_product_attention(query, hoisted.keys, hoisted.agent_values)
        return self.agents.out_proj(found.transpose(1, 2).flatten(2))


class CascadeDecoder(nn.Module):
    """Layers that refine the noisy plans, each from the points of the one before.

    A layer gets the points of the last one without gradient, and the same queries as the first: features are not
    passed on. All layers' outputs are trained.

    Args:
        width: C.
        points: T.
        extent: Metres of the view to each side.
        layers: Their number.
        looks: See `DecoderLayer`.
        ffn_residual: See `DecoderLayer`.
        learned_skip: See `DecoderLayer`.
    """

    def __init__(
        self,
        width: int,
        points: int,
        extent: float,
        *,
        layers: int = 2,
        looks: bool = True,
        ffn_residual: bool = False,
        learned_skip: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.encoder = nn.Sequential(
            nn.Linear(points * EMBEDDED, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, width)
        )
        self.level = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.layers = nn.ModuleList(
            DecoderLayer(
                width, points, extent, looks=looks, ffn_residual=ffn_residual, learned_skip=learned_skip
            )
            for _ in range(layers)
        )

    def hoist(self, scene: Scene) -> list[Hoisted]:
        """Return what all denoising steps share, a layer each."""
        return [layer.hoist(scene) for layer in self.layers]

    def forward(self, points: Tensor, hoisted: list[Hoisted], level: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return poses [B, N, T, 3] and scores [B, N] of every layer.

        Args:
            points: Noisy plans in metres, [B, N, T, 2].
            hoisted: From `hoist`.
            level: int64 [B].
        """
        queries = self.encoder(embed_points(points))
        embedded = self.level(embed_level(level, self.width))
        found = []
        for layer, shared in zip(self.layers, hoisted, strict=True):
            poses, scores = layer(queries, points, shared, embedded)
            found.append((poses, scores))
            points = poses[..., :2].detach()
        return found


def _project(attention: nn.MultiheadAttention, tokens: Tensor, part: int) -> Tensor:
    width = attention.embed_dim
    rows = slice(part * width, (part + 1) * width)
    projected = F.linear(tokens, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
    return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _projections(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[None, Tensor, Tensor]:
    return None, _project(attention, tokens, 1), _project(attention, tokens, 2)
