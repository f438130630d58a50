"""PPO over decisions and denoising steps (section 3.4), in any vector environment that plays chunks: dreams or real."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.diwa.options import Tuning
from noiseworks.diwa.policy import ChainPolicy
from noiseworks.kits.rl.denoising import ReturnScale, denoising_ppo_loss, gae
from noiseworks.kits.rl.stepping import Stepper
from torch import Tensor, nn


class Rollout(NamedTuple):
    """Decisions of T rounds in N environments, one after the other's round.

    Attributes:
        features: [T N, F].
        chains: [T N, K' + 1, C, Da].
        log_probs: Of the chains' steps when they were drawn, [T N, K'].
        advantages: [T N].
        returns: What the critic shall expect, [T N].
    """

    features: Tensor
    chains: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor


def make_critic(features: int, width: int = 256) -> nn.Sequential:
    """Return the critic of features."""
    return nn.Sequential(
        nn.Linear(features, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, 1)
    )


class DreamPPO:
    """Rounds of acting and learning; the environment begins anew in each, so that a run resumes between them.

    Args:
        policy: The policy, whose tail is tuned.
        env: Plays chunks; observations are the policy's features.
        options: PPO.
        decisions: Decisions of each environment in a round.
        critic: Of features; by default a new one of the options' seed.

    Attributes:
        stepper: Counts the environment's steps.

    Raises:
        InputError: When widths differ.
    """

    def __init__(
        self,
        policy: ChainPolicy,
        env: VectorEnv,
        options: Tuning,
        decisions: int,
        critic: nn.Module | None = None,
    ) -> None:
        seen, act = env.single_observation_space.shape, env.single_action_space.shape
        if seen != (policy.features,) or act != (policy.chunk, policy.action_dim):
            raise InputError(
                f"the policy reads features ({policy.features},) and gives chunks "
                f"({policy.chunk}, {policy.action_dim}); the environment has {seen} and {act}"
            )
        if policy.tail is None:
            policy.tune(options.tuned_steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.critic = make_critic(policy.features) if critic is None else critic
        self.policy, self.env, self.options, self.decisions = policy, env, options, decisions
        self.stepper, self.scale = Stepper(env), ReturnScale(env.num_envs)
        self.actor_optimizer = torch.optim.Adam(policy.tail.parameters(), options.actor_rate)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_rate)
        self.generator = torch.Generator().manual_seed(options.seed)

    def round(self, step: int) -> dict[str, float]:
        """Roll out, then take the epochs; return figures.

        Raises:
            NonFiniteError: When a reward or a loss is not finite.
        """
        rollout, figures = self.roll_out(step)
        base = (
            self.policy.chain(rollout.features, self.generator, base=True) if self.options.bc_coef else None
        )
        for _ in range(self.options.epochs):
            kl = self._epoch(rollout, base, step, figures)
            if kl > self.options.kl_limit:
                break
        return figures

    @torch.no_grad()
    def roll_out(self, step: int) -> tuple[Rollout, dict[str, float]]:
        """Act in fresh episodes.

        Args:
            step: Number of the round, which seeds them.

        Returns:
            The rollout, and figures: `success` is the share of the environments whose first episode succeeded, since of
            all that end in a rollout the short ones are too many.
        """
        policy, critic, count = self.policy, self.critic, self.env.num_envs
        seen = self.stepper.reset(mix64(self.options.seed, step, 5) % 2**31)
        self.scale.returns.zero_()
        columns: list[tuple[Tensor, ...]] = []
        first = np.ones(self.env.num_envs, bool)
        solved = np.zeros(self.env.num_envs, bool)
        for _ in range(self.decisions):
            feature = torch.as_tensor(seen, dtype=torch.float32)
            chain = policy.chain(feature, self.generator)
            result = self.stepper.step(chain[:, -1].clamp(-1, 1).numpy())
            rewards = torch.as_tensor(result.rewards, dtype=torch.float32)
            check_finite("reward", rewards, step)
            over = torch.as_tensor(result.terminated | result.truncated)
            reached = critic(torch.as_tensor(np.asarray(result.reached), dtype=torch.float32))[:, 0]
            value, scaled = critic(feature)[:, 0], self.scale(rewards, over)
            terminated = torch.as_tensor(result.terminated)
            columns.append(
                (feature, chain, policy.log_prob(feature, chain), scaled, value, reached, terminated, over)
            )
            solved |= first & result.terminated
            first &= ~over.numpy()
            seen = result.observations
        features, chains, log_probs, rewards, values, reached, terminated, over = map(
            torch.stack, zip(*columns, strict=True)
        )
        advantages = gae(rewards, values, reached, terminated, over, (self.options.gamma, self.options.lam))
        flat = [part.flatten(0, 1) for part in (features, chains, log_probs, advantages, advantages + values)]
        figures = {"success": float(solved.mean()), "reward": float(rewards.sum() / count)}
        return Rollout(*flat), figures | {"steps": float(self.stepper.steps)}

    def _epoch(self, rollout: Rollout, base: Tensor | None, step: int, figures: dict[str, float]) -> float:
        """Go once over a rollout; return the largest divergence."""
        whole = self.options.minibatch == "chains" or self.options.batch_size >= len(rollout.advantages)
        rows, steps, largest = len(rollout.advantages), self.policy.tuned_steps, 0.0
        size = self.options.batch_size * (1 if whole else steps)
        order = torch.randperm(rows if whole else rows * steps, generator=self.generator)
        for part in order.split(size):
            decisions = part if whole else part // steps
            positions = None if whole else part % steps
            loss = self.policy_loss(rollout, decisions, positions)
            total = loss.loss
            if base is not None:
                near = self.bc_loss(rollout.features[decisions], base[decisions], positions)
                total = total + self.options.bc_coef * near
            error = self.critic(rollout.features[decisions])[:, 0] - rollout.returns[decisions]
            value = 0.5 * error.square().mean()
            check_finite("policy loss", total.detach(), step)
            check_finite("critic loss", value.detach(), step)
            if step >= self.options.critic_first:
                self._take(self.actor_optimizer, total)
            self._take(self.critic_optimizer, 0.5 * value)
            largest = max(largest, float(loss.kl))
            figures |= {
                "policy": float(total.detach()),
                "critic": float(value.detach()),
                "kl": float(loss.kl),
            }
            figures["clipped"] = float(loss.clipped)
        return largest

    def policy_loss(self, rollout: Rollout, decisions: Tensor, positions: Tensor | None) -> Any:
        """Return PPO's loss of some decisions' chains, or of single steps of them."""
        features, chains, old = (part[decisions] for part in rollout[:3])
        advantages, gamma = rollout.advantages[decisions], self.options.denoising_gamma
        if positions is None:
            return denoising_ppo_loss(self.policy.log_prob(features, chains), old, advantages, gamma)
        rows = torch.arange(len(decisions))
        before, after = chains[rows, positions], chains[rows, positions + 1]
        new = self.policy.pair_log_prob(features, before, after, positions)
        old = old[rows, positions]
        return denoising_ppo_loss(
            new, old, advantages, gamma, positions=positions, steps=self.policy.tuned_steps
        )

    def bc_loss(self, features: Tensor, base: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the mean negative log probability of chains of the base, [B, K' + 1, C, Da], or of single steps."""
        if positions is None:
            return -self.policy.log_prob(features, base).mean()
        rows = torch.arange(len(base))
        before, after = base[rows, positions], base[rows, positions + 1]
        return -self.policy.pair_log_prob(features, before, after, positions).mean()

    @staticmethod
    def _take(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "scale": self.scale.state_dict(),
            "random": self.generator.get_state(),
            "steps": self.stepper.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        for name in ("policy", "critic", "actor_optimizer", "critic_optimizer", "scale"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["random"])
        self.stepper.steps = state["steps"]
