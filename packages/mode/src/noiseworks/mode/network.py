"""The MoDE denoiser F(c_in a; sigma, s, g): a causal transformer whose MLPs are experts routed by the noise."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.mode.config import MoDEConfig
from noiseworks.mode.experts import Merged, SwiGLU, mixture
from noiseworks.mode.routing import Router, Routing, probabilities, select_experts
from torch import Tensor, nn


class Condition(NamedTuple):
    """What a prediction is conditioned on.

    Attributes:
        goal: Goal embeddings [B, G].
        obs: Observation tokens [B, n, O]: one per camera, or the state.
        proprio: The robot's state [B, P], where the model has such a token.
    """

    goal: Tensor
    obs: Tensor
    proprio: Tensor | None = None


class RMSNorm(nn.Module):
    """x / max(||x|| / sqrt(D), eps) g.

    Args:
        dim: Width D.
        eps: Smallest divisor.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.scale = eps, dim**-0.5
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x [..., D]."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return x / size.clamp_min(self.eps) * self.g


class Attention(nn.Module):
    """Causal self-attention with RMS-normalised queries and keys; the output layer has no bias.

    Args:
        width: Width D.
        num_heads: Heads.
        dropout: Of the attention weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width // num_heads), RMSNorm(width // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output for tokens [B, S, D]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = self.q_norm(q).to(v), self.k_norm(k).to(v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One block: x1 = x + Attn(RMS(x) + n), y = RMS(x1), out = y + MoE(y, n) (paper eq. 6 and 7).

    Args:
        config: Sizes and choices.
    """

    def __init__(self, config: MoDEConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_1, self.norm_2 = RMSNorm(config.width), RMSNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, config.attention_dropout)
        self.router = None if config.dense else Router(config.width, config.num_routed)
        self.experts = nn.ModuleList(
            self._expert() for _ in range(config.num_routed - int(config.identity_expert))
        )
        if config.identity_expert:
            self.experts.append(nn.Identity())
        self.shared = self._expert() if config.shared_expert else None
        film = config.noise_conditioning == "film"
        self.film = nn.Linear(config.width, 2 * config.width) if film else None

    def _expert(self) -> SwiGLU:
        config = self.config
        return SwiGLU(config.width, config.expert_factor * config.width, config.expert_dropout)

    def forward(
        self, x: Tensor, n: Tensor, cond: Tensor, merged: Merged | None, record: list[Routing] | None
    ) -> Tensor:
        """Return the block's output for tokens [B, S, D].

        Args:
            x: Tokens [B, S, D].
            n: Noise embedding, [B or 1, 1, D].
            cond: What the router sees, [B, 1, D]; unused with token routing.
            merged: The chosen experts as one MLP, in place of routing.
            record: Takes what the router did.
        """
        x = x + self.attention(self._conditioned(self.norm_1(x), n))
        y = self.norm_2(x)
        stream = y if self.config.residual == "normed" else x
        mixed = merged(y) if merged is not None else self.moe(y, cond, record)
        if self.shared is not None:
            mixed = mixed + self.shared(y)
        return stream + mixed

    def _conditioned(self, x: Tensor, n: Tensor) -> Tensor:
        if self.film is not None:
            scale, shift = self.film(n).chunk(2, dim=-1)
            return x * (1 + scale) + shift
        return x + n if self.config.noise_conditioning == "add" else x

    def moe(self, y: Tensor, cond: Tensor, record: list[Routing] | None = None) -> Tensor:
        """Return MoE(y, n) = sum_i w_i E_i(y) of tokens [B, S, D] (paper eq. 4 and 5)."""
        if self.router is None:
            return self.experts[0](y)
        batch, length = y.shape[:2]
        token = self.config.routing == "token"
        logits = self.router((y if token else cond).flatten(0, 1))
        probs = probabilities(logits)
        drawn = self.training and not self.config.argmax_routing
        draws = (1 if token else length) if drawn else None
        ids, gates = select_experts(probs, self.config.routed_k, draws)
        if not drawn and not token:  # one choice for all tokens of a sample
            ids, gates = (t[:, None].expand(-1, length, -1) for t in (ids, gates))
        ids, gates = ids.reshape(batch * length, -1), gates.reshape(batch * length, -1)
        if record is not None:
            record.append(Routing(logits, probs, ids, gates))
        return mixture(self.experts, y.flatten(0, 1), ids, gates).unflatten(0, (batch, length))


class MoDEDenoiser(nn.Module):
    """The network F on tokens [noise, goal, (proprio), observations, actions]; attention is causal.

    Args:
        config: Sizes and choices.
    """

    def __init__(self, config: MoDEConfig) -> None:
        super().__init__()
        self.config = config
        self.trainings = 0  # how often `train()` was called, which outdates merged experts
        width = config.width
        self.sigma_emb, self.sigma_linear = nn.Linear(1, width), nn.Linear(width, width, bias=False)
        self.goal_emb = nn.Linear(config.goal_dim, width, bias=False)
        self.obs_emb = nn.Linear(config.obs_dim, width, bias=False)
        self.action_emb = nn.Linear(config.action_dim, width, bias=False)
        self.proprio_emb = nn.Linear(config.proprio_dim, width, bias=False) if config.proprio_dim else None
        # Position 0 is the goal's. All observation tokens and the first action share position 1.
        self.pos_emb = nn.Parameter(torch.zeros(1 + config.chunk, width))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, config.action_dim)
        initialize(self)

    def train(self, mode: bool = True) -> "MoDEDenoiser":
        """Go to training mode, which outdates merged experts, or to evaluation mode."""
        self.trainings += int(mode)
        return super().train(mode)

    def noise_embedding(self, sigma: Tensor) -> Tensor:
        """Return n = W (w ln(sigma)/4 + b), [B, 1, D], of noise levels [B] above 0."""
        if not bool((sigma > 0).all()):
            raise InputError("sigma must be above 0: its logarithm is what the network sees")
        level = (sigma.double().log() / 4).to(self.sigma_emb.weight.dtype)
        return self.sigma_linear(self.sigma_emb(level[:, None]))[:, None]

    def context(self, cond: Condition) -> Tensor:
        """Return the tokens that do not depend on the noise, [B, 1 + (1) + n, D]; made once a replan.

        Raises:
            InputError: When a batch size or a width does not fit.
        """
        check_condition(self.config, cond)
        goal = self._drop_goal(cond.goal) if self.training else cond.goal
        tokens = [self.goal_emb(goal)[:, None] + self.pos_emb[0]]
        if self.proprio_emb is not None:
            tokens.append(self.proprio_emb(cond.proprio)[:, None] + self.pos_emb[1])
        tokens.append(self.obs_emb(cond.obs) + self.pos_emb[1])
        return self.dropout(torch.cat(tokens, dim=1))

    def _drop_goal(self, goal: Tensor) -> Tensor:
        share = self.config.goal_dropout
        shape = goal.shape if self.config.goal_dropout_mode == "element" else (len(goal), 1)
        return goal * (torch.rand(shape, device=goal.device) >= share)  # not rescaled, as published

    def forward(
        self,
        actions: Tensor,
        n: Tensor,
        context: Tensor,
        merged: list[Merged] | None = None,
        record: list[Routing] | None = None,
    ) -> Tensor:
        """Return F for scaled noisy actions.

        Args:
            actions: c_in a, [B, chunk, A].
            n: `noise_embedding` of the levels, [B, 1, D], or [1, 1, D] where all rows share one.
            context: Of `context`, [B, C, D].
            merged: One merged MLP per block, in place of routing.
            record: Takes each block's routing.

        Raises:
            InputError: When the actions have another chunk or width.
        """
        expected = (self.config.chunk, self.config.action_dim)
        if actions.ndim != 3 or actions.shape[1:] != expected:
            raise InputError(
                f"actions must have shape [B, {expected[0]}, {expected[1]}], got {tuple(actions.shape)}"
            )
        noisy = self.dropout(self.action_emb(actions) + self.pos_emb[1:])
        first = [n.expand(len(actions), -1, -1).to(noisy)] if self.config.noise_token else []
        x = torch.cat([*first, context.to(noisy), noisy], dim=1)
        cond = n.expand(len(actions), -1, -1)
        if self.config.routing == "goal":
            cond = cond + context[:, :1]
        for i, block in enumerate(self.blocks):
            x = block(x, n, cond, None if merged is None else merged[i], record)
        return self.out(self.norm(x[:, -self.config.chunk :]))


def check_condition(config: MoDEConfig, cond: Condition) -> None:
    """Refuse a condition whose batch sizes or widths do not fit the model.

    Raises:
        InputError: Naming the part.
    """
    batch = len(cond.goal)
    parts = {"goal": (cond.goal, 2, config.goal_dim), "obs": (cond.obs, 3, config.obs_dim)}
    if (cond.proprio is None) != (config.proprio_dim is None):
        raise InputError("proprio must be given exactly when the model has proprio_dim")
    if cond.proprio is not None:
        parts["proprio"] = (cond.proprio, 2, config.proprio_dim)
    for name, (value, ndim, width) in parts.items():
        if value.ndim != ndim or value.shape[-1] != width or len(value) != batch:
            shape = [batch, *["n"] * (ndim - 2), width]
            raise InputError(f"{name} must have shape {shape}, got {list(value.shape)}")


def initialize(model: MoDEDenoiser) -> None:
    """Set the initial weights: truncated normals of 0.02 cut at two deviations (paper), or torch's defaults.

    Routers start at 0.02 with zero biases either way, so that all experts start with nearly equal weights;
    positions start at 0 and FiLM at the identity.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if name.endswith("film"):
            nn.init.zeros_(layer.weight)
        elif model.config.init == "olmoe":
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
        elif ".router." in name:
            nn.init.normal_(layer.weight, std=0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
