"""The feasible generator G (section 3.1): from past states and returns-to-go to the next ones, one by one.

All tensors are in the planner's units: states standardised, returns divided by the scale.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.trajectory_diffuser.options import Architecture
from torch import Tensor, nn

HEADS, DROPOUT, RETURN_WIDTH = 4, 0.1, 16
EXPLODED = 10.0  # deviations from the data's mean


class Draft(nn.Module):
    """What all draft models share: dreaming on from a past.

    A subclass has `_encode(states, returns, memory) -> (features [B, L, W], memory)` and the two heads.

    Args:
        obs_dim: Width of a state, Do.
        width: Width of the features that the heads read.
        room: Pairs that the model reads at once, H - 1.
    """

    def __init__(self, obs_dim: int, width: int, room: int) -> None:
        super().__init__()
        self.room = room
        self.state_head, self.return_head = _head(width, obs_dim), _head(width, 1)

    def forward(self, states: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each position the next state [B, L, Do] and return [B, L].

        Args:
            states: [B, L, Do], L at most `room`.
            returns: [B, L].
        """
        return self._read(self._encode(states, returns, None)[0])

    def dream(self, states: Tensor, returns: Tensor, steps: int) -> Tensor:
        """Return the next states, each from what is before it, [B, steps, Do].

        A state further than 10 deviations from the data's mean is replaced by the one before it.

        Args:
            states: Past states, the current one last, [B, L, Do]; the last `room` are read.
            returns: Their returns, [B, L].
            steps: How many.
        """
        states, returns = states[:, -self.room :], returns[:, -self.room :]
        features, memory = self._encode(states, returns, None)
        made: list[Tensor] = []
        for left in range(steps - 1, -1, -1):
            state, wish = (part[:, -1:] for part in self._read(features[:, -1:]))
            lost = ~(state.abs() <= EXPLODED).all(-1, keepdim=True)
            state = torch.where(lost, states[:, -1:], state)
            made.append(state)
            states = torch.cat((states, state), 1)[:, -self.room :]
            returns = torch.cat((returns, wish), 1)[:, -self.room :]
            if left:
                features, memory = self._extend(states, returns, memory)
        return torch.cat(made, 1)

    def _extend(self, states: Tensor, returns: Tensor, memory: Any) -> tuple[Tensor, Any]:
        return self._encode(states[:, -1:], returns[:, -1:], memory)

    def _encode(self, states: Tensor, returns: Tensor, memory: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def _read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.state_head(features), self.return_head(features).squeeze(-1)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


class Block(nn.Module):
    """Attention and a feed-forward network, each with its norm behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.attended, self.fed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(DROPOUT)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, causal: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return features [B, L, W] of x, and keys and values; with those of a past, x is one position."""
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        if past is not None:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=causal and past is None)
        x = self.attended(x + self.drop(self.out(seen.transpose(1, 2).flatten(2))))
        return self.fed(x + self.drop(self.second(F.relu(self.first(x))))), (key, value)


class TransformerDraft(Draft):
    """The paper's draft model.

    Args:
        obs_dim: Width of a state.
        architecture: Sizes; without `causal` it is the released network, which no memory of keys can serve.
    """

    def __init__(self, obs_dim: int, architecture: Architecture) -> None:
        width = architecture.draft_width
        super().__init__(obs_dim, width, architecture.horizon - 1)
        self.causal = architecture.causal
        self.embed_state, self.embed_return = nn.Linear(obs_dim, width // 2), nn.Linear(1, width // 2)
        self.begin, self.end, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(width) for _ in range(architecture.draft_layers))
        self.register_buffer("places", _places(self.room, width), persistent=False)

    def _encode(self, states: Tensor, returns: Tensor, memory: Any) -> tuple[Tensor, Any]:
        first = 0 if memory is None else memory[0][0].shape[2]
        x = torch.cat((self.embed_state(states), self.embed_return(returns[..., None])), -1)
        x = self.begin(self.drop(x + self.places[first : first + x.shape[1]]))
        kept = []
        for number, block in enumerate(self.blocks):
            x, pair = block(x, None if memory is None else memory[number], self.causal)
            kept.append(pair)
        return self.end(x), kept

    def _extend(self, states: Tensor, returns: Tensor, memory: Any) -> tuple[Tensor, Any]:
        # Places count from the window's start: keys stay true only while the window does not slide.
        if self.causal and memory[0][0].shape[2] < self.room:
            return super()._extend(states, returns, memory)
        return self._encode(states, returns, None)


class RecurrentDraft(Draft):
    """The paper's smaller draft models: LSTM, GRU or a plain recurrent network.

    Args:
        obs_dim: Width of a state.
        architecture: Sizes.
    """

    def __init__(self, obs_dim: int, architecture: Architecture) -> None:
        width = architecture.draft_width
        super().__init__(obs_dim, width, architecture.horizon - 1)
        cell = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[architecture.draft]
        self.embed_return = nn.Linear(1, RETURN_WIDTH)
        self.cell = cell(obs_dim + RETURN_WIDTH, width, batch_first=True)

    def _encode(self, states: Tensor, returns: Tensor, memory: Any) -> tuple[Tensor, Any]:
        return self.cell(torch.cat((states, self.embed_return(returns[..., None])), -1), memory)


def make_draft(obs_dim: int, architecture: Architecture) -> Draft:
    """Return an untrained draft model."""
    kind = TransformerDraft if architecture.draft == "transformer" else RecurrentDraft
    return kind(obs_dim, architecture)


def draft_loss(draft: Draft, states: Tensor, returns: Tensor) -> Tensor:
    """Return the squared errors of next states and returns over all H - 1 positions of windows (eq. 3).

    Args:
        draft: G.
        states: [B, H, Do].
        returns: [B, H].
    """
    next_states, next_returns = draft(states[:, :-1], returns[:, :-1])
    return F.mse_loss(next_states, states[:, 1:]) + F.mse_loss(next_returns, returns[:, 1:])


@torch.no_grad()
def next_state_error(draft: Draft, states: Tensor, returns: Tensor) -> Tensor:
    """Return the error of the next state as a draft is made, the root of its mean square over pasts of 1 to H - 2, [B].

    Args:
        draft: G.
        states: Windows [B, H, Do].
        returns: [B, H].
    """
    errors = [
        (draft(states[:, :n], returns[:, :n])[0][:, -1] - states[:, n]).square().mean(-1)
        for n in range(1, states.shape[1] - 1)
    ]
    return torch.stack(errors).mean(0).sqrt()


def _places(count: int, width: int) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
