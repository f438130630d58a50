"""Base policies (section 3): expressive, trained by imitation alone, and asked for samples.

Actions are one decision, [D] = a chunk of C actions side by side, in [-1, 1].
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.schedules import TableSchedule, add_noise, from_betas
from noiseworks.expo.options import BaseSizes
from noiseworks.kits.policies.hosts import as_host, trained_network
from noiseworks.kits.policies.loop import DenoisingLoop
from noiseworks.kits.policies.steps import sampler_table
from noiseworks.kits.policies.training import diffusion_loss
from torch import Tensor, nn

Read = str | Callable[[Tensor], Mapping[str, Tensor]]


class BasePolicy(nn.Module):
    """What EXPO needs of a base: samples, and a loss if it shall go on learning.

    Attributes:
        obs_dim: Width of an observation.
        action_dim: Width D of a decision.
        chunk: Actions of a decision, C.
    """

    obs_dim: int
    action_dim: int
    chunk: int

    def sample(self, obs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n decisions for each observation, [B, n, D] in [-1, 1]."""
        raise NotImplementedError

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the imitation loss of decisions [B, D]; rewards play no part in it."""
        raise NotImplementedError

    def averaged(self) -> "BasePolicy":
        """Return a copy for the moving average of the weights."""
        return copy.deepcopy(self).requires_grad_(False).eval()


def vp_schedule(steps: int) -> TableSchedule:
    """Return the variance-preserving schedule, alpha_t = exp(-0.1 / T - 4.95 (2 t - 1) / T^2)."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return from_betas(1 - torch.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2), "vp")


class Denoiser(nn.Module):
    """The residual network of noisy decision, observation and time.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of a decision.
        sizes: Sizes.
    """

    def __init__(self, obs_dim: int, action_dim: int, sizes: BaseSizes) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(sizes.time_dim // 2))
        features = 2 * (sizes.time_dim // 2)
        self.time = nn.Sequential(
            nn.Linear(features, 2 * features), nn.SiLU(), nn.Linear(2 * features, 2 * features)
        )
        self.begin = nn.Linear(action_dim + obs_dim + 2 * features, sizes.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(sizes.dropout),
                nn.LayerNorm(sizes.width),
                nn.Linear(sizes.width, 4 * sizes.width),
                nn.SiLU(),
                nn.Linear(4 * sizes.width, sizes.width),
            )
            for _ in range(sizes.blocks)
        )
        self.end = nn.Linear(sizes.width, action_dim)

    def forward(self, x: Tensor, obs: Tensor, t: Tensor) -> Tensor:
        """Return the output [B, D] for noisy decisions x [B, D], observations [B, Do] and times [B]."""
        angles = 2 * torch.pi * t.to(x)[:, None] * self.frequencies
        time = self.time(torch.cat((angles.cos(), angles.sin()), -1))
        h = self.begin(torch.cat((x, obs, time), -1))
        for block in self.blocks:
            h = h + block(h)
        return self.end(F.silu(h))


class GenerativeBase(BasePolicy):
    """A diffusion (DDPM) or flow-matching policy.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of a single action.
        sizes: Sizes and kind.
    """

    def __init__(self, obs_dim: int, action_dim: int, sizes: BaseSizes | None = None) -> None:
        super().__init__()
        check_number("obs_dim", obs_dim, low=1, integer=True)
        check_number("action_dim", action_dim, low=1, integer=True)
        self.sizes = sizes or BaseSizes()
        self.obs_dim, self.chunk = obs_dim, self.sizes.chunk
        self.action_dim = action_dim * self.chunk
        self.net = Denoiser(obs_dim, self.action_dim, self.sizes)
        self.schedule = vp_schedule(self.sizes.denoising_steps)
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))

    def normalise(self, obs: Tensor) -> Tensor:
        """Return observations in the network's units."""
        return (obs - self.mean) / self.std

    @torch.no_grad()
    def sample(self, obs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n decisions for each observation, [B, n, D]."""
        rows = self.normalise(obs).repeat_interleave(n, 0)
        x = torch.randn((len(rows), self.action_dim), generator=generator).to(rows)
        x = self._denoise(x, rows, generator) if self.sizes.kind == "ddpm" else self._flow(x, rows)
        return x.clamp(-1, 1).unflatten(0, (len(obs), n))

    def _denoise(self, x: Tensor, obs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Sample ancestrally with the variances beta_t, kept in the box after every step."""
        betas, sigmas = self.schedule.betas.tolist(), (1 - self.schedule.alphas_cumprod).sqrt().tolist()
        for t in range(len(betas) - 1, -1, -1):
            noise = self.net(x, obs, torch.full((len(x),), t, device=x.device))
            x = (x - betas[t] / sigmas[t] * noise) / (1 - betas[t]) ** 0.5
            if t:
                x = x + betas[t] ** 0.5 * torch.randn(x.shape, generator=generator).to(x)
            x = x.clamp(-1, 1)
        return x

    def _flow(self, x: Tensor, obs: Tensor) -> Tensor:
        steps = self.sizes.denoising_steps
        for i in range(steps):
            x = x + self.net(x, obs, torch.full((len(x),), i / steps, device=x.device)) / steps
        return x

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the squared error of noise or velocity, summed over dimensions, mean over the batch."""
        rows, noise = self.normalise(obs), torch.randn(actions.shape, generator=generator).to(actions)
        if self.sizes.kind == "ddpm":
            t = torch.randint(self.schedule.num_steps, (len(rows),), generator=generator).to(rows.device)
            noisy, target = add_noise(actions, noise, self.schedule.level(t)), noise
        else:
            t = torch.rand(len(rows), generator=generator).to(rows)
            noisy, target = noise + t[:, None] * (actions - noise), actions - noise
        return (self.net(noisy, rows, t) - target).square().sum(-1).mean()


class HostBase(BasePolicy):
    """A policy of `kits.policies` as a base: native ones, LeRobot's, the original library's.

    Args:
        policy: A host, or a policy that `as_host` knows, that reads one observation at a time.
        steps: Denoising steps of a sample.
        solver: `ddpm`, or `ddim` from fresh noise.
        bounds: Least and largest values of an action in the environment, [Da] or one each.
        read: The policy's name of the observation, or a function from observations [B, Do] to a dictionary of tensors
            [B, ...] under the policy's names.
        obs_dim: Width Do of an observation, where `read` is a function.

    Raises:
        InputError: When `read` is a function and there is no width.
        UnsupportedHostError: When it is no policy that is known, or reads several observations or other names.
    """

    def __init__(
        self,
        policy: object,
        steps: int = 10,
        solver: Any = "ddpm",
        bounds: tuple[Any, Any] = (-1.0, 1.0),
        read: Read = "obs",
        obs_dim: int | None = None,
    ) -> None:
        super().__init__()
        host = as_host(policy)
        if host.n_obs_steps != 1:
            raise UnsupportedHostError(
                f"the policy reads {host.n_obs_steps} observations; EXPO's critics read one: use a policy of one"
            )
        shapes = getattr(host, "observation_shapes", {})
        if not callable(read):
            if list(shapes) != [read]:
                raise UnsupportedHostError(
                    f"the policy reads {', '.join(shapes) or 'it does not say what'} and not the one vector {read!r}: "
                    "make HostBase(policy, read=..., obs_dim=...) with a function to the policy's names"
                )
            obs_dim = shapes[read][0]
        elif obs_dim is None:
            raise InputError("give obs_dim, the width of an observation, where read is a function")
        self.network, self._host = (
            trained_network(host),
            [host],
        )  # a list, so that torch does not list it twice
        self.obs_dim, self.read = obs_dim, read
        self.chunk, self.action_dim = host.n_action_steps, host.n_action_steps * host.action_dim
        self.table, self.loop = sampler_table(host.scheduler, solver, steps), DenoisingLoop(host, 1)
        low, high = (torch.as_tensor(one, dtype=torch.float32).expand(host.action_dim) for one in bounds)
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def _named(self, obs: Tensor) -> dict[str, Tensor]:
        named = self.read(obs) if callable(self.read) else {self.read: obs}
        return {name: value[:, None] for name, value in named.items()}

    @property
    def host(self) -> Any:
        """The policy."""
        return self._host[0]

    @torch.no_grad()
    def sample(self, obs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n decisions for each observation, [B, n, D]."""
        host, rows = self.host, len(obs) * n
        cond = host.encode(self._named(obs.repeat_interleave(n, 0)))
        x = self.loop.start(rows)
        self.loop.draw_(x, generator)
        made = host.normalizer.unnormalize(self.loop.run(self.table, cond, rows, generator).clone())
        first = getattr(getattr(host, "chunk", None), "start", 0)
        made = made[:, first : first + self.chunk]
        scaled = 2 * (made - self.low) / (self.high - self.low) - 1
        return scaled.clamp(-1, 1).flatten(1).unflatten(0, (len(obs), n))

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the policy's own diffusion loss.

        Raises:
            InputError: When the policy predicts more actions than are played, which no buffer holds.
        """
        host = self.host
        if host.horizon != self.chunk:
            raise InputError(
                f"the policy predicts {host.horizon} actions and plays {self.chunk}: keep it as it is (train_base off)"
            )
        chunk = self.low + (actions.unflatten(1, (self.chunk, -1)) + 1) / 2 * (self.high - self.low)
        noise = torch.randn(chunk.shape, generator=generator).to(chunk)
        t = torch.randint(host.scheduler.config.num_train_timesteps, (len(obs),), generator=generator)
        batch = {**self._named(obs), "action": chunk}
        return diffusion_loss(host, batch, t.to(chunk.device), noise)


class ZeroBase(BasePolicy):
    """No base: every proposal is the middle of the box, so that edits of scale 1 are an ordinary SAC actor."""

    def __init__(self, obs_dim: int, action_dim: int, chunk: int = 1) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.chunk = obs_dim, action_dim * chunk, chunk

    def sample(self, obs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros [B, n, D]."""
        return torch.zeros(len(obs), n, self.action_dim, device=obs.device)
