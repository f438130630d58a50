"""The small networks of offline learners: ensembles of critics as one batched product, and two kinds of actor."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)


class EnsembleLinear(nn.Module):
    """`members` linear layers of one size, applied in one batched product.

    Args:
        members: How many, E.
        inputs: Width of the input.
        outputs: Width of the output.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as `nn.Linear` begins
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Return outputs [E, B, outputs] of x [E, B, inputs], or of some members, int64 [M], [M, B, outputs]."""
        if members is None:
            return torch.baddbmm(self.bias, x, self.weight)
        return torch.baddbmm(self.bias[members], x, self.weight[members])


class Critics(nn.Module):
    """An ensemble of Q networks: multilayer perceptrons of observation and action.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        members: How many, E.
        hidden: Width of the hidden layers.
        layers: Hidden layers.
        layer_norm: Whether a LayerNorm follows each hidden layer.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        members: int = 2,
        hidden: int = 256,
        layers: int = 2,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"members": members, "hidden": hidden, "layers": layers}.items():
            check_number(name, value, low=1, integer=True)
        widths = [obs_dim + action_dim, *[hidden] * layers, 1]
        self.members, self.layer_norm = members, layer_norm
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in pairwise(widths))

    def forward(self, obs: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Return values [E, B] of observations [B, Do] and actions [B, Da].

        Args:
            obs: Observations.
            action: Actions.
            members: Which members are asked, int64 [M], for values [M, B]; all by default.
        """
        x = torch.cat((obs, action), -1).expand(self.members if members is None else len(members), -1, -1)
        for layer in self.layers[:-1]:
            x = layer(x, members)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return self.layers[-1](x, members).squeeze(-1)


def mlp(inputs: int, outputs: int, hidden: int = 256, layers: int = 2) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU."""
    widths = [inputs, *[hidden] * layers]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(widths[-1], outputs))


class DeterministicActor(nn.Module):
    """An action in [-1, 1]^Da for each observation.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = mlp(obs_dim, action_dim, hidden)

    def forward(self, obs: Tensor) -> Tensor:
        """Return actions [..., Da] of observations [..., Do]."""
        return self.net(obs).tanh()


class GaussianActor(nn.Module):
    """A normal distribution of actions whose mean is in [-1, 1]^Da and whose deviation is the same everywhere.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.net = mlp(obs_dim, action_dim, hidden)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, obs: Tensor) -> Tensor:
        """Return the means [..., Da]."""
        return self.net(obs).tanh()

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return log densities [...] of actions [..., Da]."""
        return normal_log_prob(action, self(obs), self.log_std.clamp(*LOG_STD_RANGE)).sum(-1)


class SquashedGaussian(nn.Module):
    """The tanh of a normal distribution, which SAC's actors are.

    Args:
        inputs: Width of the input.
        action_dim: Width of an action.
        hidden: Width of the hidden layers.
        layers: Hidden layers.
    """

    def __init__(self, inputs: int, action_dim: int, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.action_dim, self.net = action_dim, mlp(inputs, 2 * action_dim, hidden, layers)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions in (-1, 1) and the log density of each dimension, both [..., Da].

        Args:
            x: Input [..., inputs].
            noise: Standard normals [..., Da]; zeros give the mode.
        """
        mean, log_std = self.net(x).chunk(2, -1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        before = mean + log_std.exp() * noise
        # log(1 - tanh^2 u), in a form that does not lose u where tanh is near 1.
        squashing = 2 * (math.log(2) - before - F.softplus(-2 * before))
        return before.tanh(), normal_log_prob(before, mean, log_std) - squashing


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor | float) -> Tensor:
    """Return log N(x; mean, exp(log_std)^2), elementwise."""
    log_std = torch.as_tensor(log_std, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move a target network's parameters by the share tau towards another's, in place."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
