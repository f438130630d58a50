"""The diffusion policy as a chain of decisions (section 3.4): a frozen base, and a tail of steps that is tuned."""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.core.schedules import Level, add_noise, from_betas
from noiseworks.diwa.options import PolicySizes
from noiseworks.kits.policies.embeddings import SinusoidalPosEmb
from noiseworks.kits.rl.denoising import STD_FLOOR, chain_log_prob, chain_step, step_log_prob
from torch import Tensor, nn

KIND, QUIET_FLOOR = "diwa/policy", 1e-3


def cosine_betas(steps: int) -> Tensor:
    """Return the cosine schedule as released, over x in linspace(0, T + 1, T + 1), float64 [T]."""
    x = torch.linspace(0, steps + 1, steps + 1, dtype=torch.float64)
    curve = torch.cos((x / (steps + 1) + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - curve[1:] / curve[:-1]).clamp(max=0.999)


class Residual(nn.Module):
    """The noise network: a residual multilayer perceptron of noisy chunk, time and feature."""

    def __init__(self, features: int, action_dim: int, sizes: PolicySizes) -> None:
        super().__init__()
        self.chunk, self.action_dim = sizes.chunk, action_dim
        d, width = sizes.time_dim, sizes.policy_width
        self.time = nn.Sequential(SinusoidalPosEmb(d), nn.Linear(d, 2 * d), nn.Mish(), nn.Linear(2 * d, d))
        self.begin = nn.Linear(sizes.chunk * action_dim + d + features, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))
            for _ in range(max(1, sizes.policy_layers // 2))
        )
        self.end = nn.Linear(width, sizes.chunk * action_dim)

    def forward(self, x: Tensor, t: Tensor, feature: Tensor) -> Tensor:
        """Return the noise [B, C, Da] of chunks x [B, C, Da] at indices t [B] under features [B, F]."""
        h = self.begin(torch.cat((x.flatten(1), self.time(t), feature), -1))
        for layer in self.layers:
            h = h + layer(h)
        return self.end(h).unflatten(1, (self.chunk, self.action_dim))


class ChainPolicy(nn.Module):
    """A diffusion policy of which the last K' denoising steps can be tuned.

    Args:
        features: Width of a feature.
        action_dim: Width of an action; actions lie in [-1, 1].
        sizes: Sizes.
        tuned_steps: K'; 0 for the imitating policy alone.

    Raises:
        InputError: When more steps shall be tuned than there are.
    """

    def __init__(
        self, features: int, action_dim: int, sizes: PolicySizes | None = None, tuned_steps: int = 0
    ) -> None:
        super().__init__()
        self.sizes = sizes or PolicySizes()
        self.features, self.action_dim, self.chunk = features, action_dim, self.sizes.chunk
        self.base = Residual(features, action_dim, self.sizes)
        self.tail: Residual | None = None
        self.tuned_steps = 0
        schedule = from_betas(cosine_betas(self.sizes.denoising_steps), "cosine")
        before = torch.cat((torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod[:-1]))
        rest = 1 - schedule.alphas_cumprod
        tables = {
            "signal": schedule.alphas_cumprod.sqrt(),
            "sigma": rest.sqrt(),
            "of_x0": before.sqrt() * schedule.betas / rest,
            "of_x": (1 - schedule.betas).sqrt() * (1 - before) / rest,
            "stds": (schedule.betas * (1 - before) / rest).sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        if tuned_steps:
            self.tune(tuned_steps)

    def tune(self, steps: int) -> None:
        """Make the last so many steps trainable: a copy of the base, which stays as it is."""
        check_number("tuned_steps", steps, low=1, high=self.sizes.denoising_steps, integer=True)
        self.tuned_steps, self.tail = steps, copy.deepcopy(self.base)
        self.base.requires_grad_(False)

    def mean(self, net: Residual, x: Tensor, t: Tensor, feature: Tensor) -> Tensor:
        """Return the mean of the next sample, from the clean chunk that a network expects, within [-1, 1].

        Args:
            net: Base or tail.
            x: Chunks [B, C, Da].
            t: Indices [B].
            feature: [B, F].
        """
        signal, sigma, of_x0, of_x = (
            table[t][:, None, None] for table in (self.signal, self.sigma, self.of_x0, self.of_x)
        )
        clean = ((x - sigma * net(x, t, feature)) / signal).clamp(-1, 1)
        return of_x0 * clean + of_x * x

    @torch.no_grad()
    def chain(
        self,
        feature: Tensor,
        generator: torch.Generator | None = None,
        *,
        quiet: bool = False,
        base: bool = False,
    ) -> Tensor:
        """Return the samples before and after each of the last K' steps, [B, K' + 1, C, Da], or the last for K' = 0.

        Args:
            feature: [B, F].
            generator: Of all noise.
            quiet: Whether little noise is added, and none in the last step, as to act; else at least 0.1, to explore.
            base: Whether the base takes all steps.
        """
        rows = len(feature)
        x = torch.randn((rows, self.chunk, self.action_dim), generator=generator).to(feature)
        kept = [x] if self.tuned_steps == self.sizes.denoising_steps else []
        for t in range(self.sizes.denoising_steps - 1, -1, -1):
            net = self.tail if self.tail is not None and t < self.tuned_steps and not base else self.base
            mean = self.mean(net, x, torch.full((rows,), t, device=x.device), feature)
            noise = torch.randn(x.shape, generator=generator).to(x)
            floor = STD_FLOOR if not quiet else QUIET_FLOOR
            x = mean if quiet and t == 0 else chain_step(mean, self.stds[t], noise, floor)
            if t <= self.tuned_steps:
                kept.append(x)
        return torch.stack(kept, 1)

    def act(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return chunks [B, C, Da] in [-1, 1] with as little noise as the chain has."""
        return self.chain(feature, generator, quiet=True)[:, -1].clamp(-1, 1)

    def log_prob(self, feature: Tensor, chain: Tensor) -> Tensor:
        """Return the log probability of each of a chain's steps under the tail, [B, K'], all in one network call."""
        rows, steps = len(chain), self.tuned_steps
        t = torch.arange(steps - 1, -1, -1, device=chain.device)
        means = self.mean(
            self.tail, chain[:, :-1].flatten(0, 1), t.repeat(rows), feature.repeat_interleave(steps, 0)
        )
        return chain_log_prob(chain, means.unflatten(0, (rows, steps)), self.stds[t])

    def pair_log_prob(self, feature: Tensor, before: Tensor, after: Tensor, position: Tensor) -> Tensor:
        """Return the log probability of single steps, [B].

        Args:
            feature: [B, F].
            before: Samples [B, C, Da].
            after: What each step led to.
            position: Place of the step in its chain, 0 the noisiest, int64 [B].
        """
        t = self.tuned_steps - 1 - position
        means = self.mean(self.tail, before, t, feature)
        return step_log_prob(after, means, self.stds[t][:, None, None])

    def loss(self, feature: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the imitation loss of chunks [B, C, Da] at random steps."""
        t = torch.randint(self.sizes.denoising_steps, (len(actions),), generator=generator).to(actions.device)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        noisy = add_noise(actions, noise, Level(self.signal[t], self.sigma[t]))
        return (self.base(noisy, t, feature) - noise).square().mean()

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        config = {"features": self.features, "action_dim": self.action_dim, "tuned_steps": self.tuned_steps}
        save_artifact(path, KIND, config | {"sizes": asdict(self.sizes)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ChainPolicy":
        """Read a policy that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        config, tensors = load_artifact(path, KIND)
        with rebuilding(path, "whole policy"):
            sizes = PolicySizes(**config["sizes"])
            made = cls(config["features"], config["action_dim"], sizes, config["tuned_steps"])
            made.load_state_dict({name: t.float() for name, t in tensors.items()})
        return made.eval().requires_grad_(False)
