"""DSRL-NA (algorithm 1): a critic of real actions, distilled into a critic of noise that trains the noise actor.

Many w give nearly the same action. So Q_A(s, a) is learned by temporal differences on the actions that were played,
which offline data can join, and Q_W(s, w) ~ Q_A(s, f(s, w)) on noise of the policy's own distribution.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.dsrl.latent_env import LatentNoiseVecEnv
from noiseworks.dsrl.networks import NormedPolicy
from noiseworks.dsrl.options import Learning
from noiseworks.kits.rl.sb3 import fill_replay
from noiseworks.kits.rl.transitions import Transitions
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor


def networks(learning: Learning) -> dict[str, Any]:
    """Return the networks' settings for stable-baselines3's policies."""
    return {"net_arch": [learning.hidden] * learning.layers, "activation_fn": torch.nn.Tanh}


class DSRLNA(SAC):
    """Noise-aliased DSRL as a learner of stable-baselines3; `critic` is Q_W and `action_critic` Q_A.

    The replay buffer holds the chunks that were played, in [-1, 1].

    Args:
        env: The environments over noise.
        learning: Settings.
        buffer_size: Chunks that are kept.
    """

    def __init__(
        self, env: LatentNoiseVecEnv, learning: Learning | None = None, buffer_size: int = 200_000
    ) -> None:
        if not isinstance(env, LatentNoiseVecEnv):
            raise InputError(f"DSRL-NA learns in a LatentNoiseVecEnv, got a {type(env).__name__}")
        self.learning, self.latent = learning or Learning(), env
        self.draws = torch.Generator().manual_seed(self.learning.seed)
        super().__init__(
            policy_class(self.learning), env, **sac_settings(self.learning), buffer_size=buffer_size
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        chunk = Box(-1.0, 1.0, (int(np.prod(self.latent.chunk_space.shape)),), np.float32)
        self.replay_buffer = ReplayBuffer(
            self.buffer_size, self.observation_space, chunk, self.device, n_envs=self.n_envs
        )
        policy = self.policy
        noise_space, policy.critic_kwargs["action_space"] = policy.critic_kwargs["action_space"], chunk
        self.action_critic = policy.make_critic(features_extractor=None).to(self.device)
        self.action_critic_target = policy.make_critic(features_extractor=None).to(self.device)
        policy.critic_kwargs["action_space"] = noise_space
        self.action_critic_target.load_state_dict(self.action_critic.state_dict())
        self.action_critic_target.set_training_mode(False)
        self.action_optimizer = torch.optim.Adam(self.action_critic.parameters(), self.learning.learning_rate)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the policy's own noise, unclipped, until learning begins."""
        if self.num_timesteps >= learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        noise = torch.randn((n_envs, *self.action_space.shape), generator=self.draws).numpy()
        return noise, noise

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep the chunk that was played instead of the noise."""
        played = self.scaled(torch.as_tensor(np.stack([info["decoded_action"] for info in infos]))).numpy()
        super()._store_transition(replay_buffer, played, new_obs, reward, dones, infos)

    def add_recorded(self, transitions: Transitions) -> None:
        """Put recorded single steps, in the environments' units, into the replay buffer as chunks.

        Raises:
            InputError: When widths differ, or there are more chunks than the buffer holds.
        """
        chunks = transitions.chunked(self.latent.chunk_space.shape[0], stride=1)
        widths = chunks.obs_dim, chunks.action_dim
        expected = int(np.prod(self.observation_space.shape)), self.replay_buffer.action_dim
        if widths != expected:
            raise InputError(
                f"the data have {widths[0]} observations and chunks of {widths[1]} numbers, the policy {expected[0]} "
                f"and {expected[1]}"
            )
        actions = torch.from_numpy(chunks.actions).unflatten(1, self.latent.chunk_space.shape)
        scaled = self.scaled(actions).clamp(-1, 1).cpu().numpy()
        fill_replay(self.replay_buffer, replace(chunks, actions=scaled))

    def scaled(self, actions: Tensor) -> Tensor:
        """Return chunks [B, C, Da] as the critic reads them, [B, C Da] in [-1, 1]."""
        space = self.latent.chunk_space
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        return (2 * (actions.cpu() - low) / (high - low) - 1).flatten(1).to(self.device)

    def decode(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return f(s, w) as the critic reads it, [B, C Da], for noise w = b u [B, D]."""
        return self.scaled(self.latent.decode(obs.cpu().numpy(), noise.cpu()))

    def combine(self, values: tuple[Tensor, ...]) -> Tensor:
        """Return the least of the critics' values, or their mean, [B, 1]."""
        joined = torch.cat(values, 1)
        return (
            joined.amin(1, keepdim=True) if self.learning.critics == "min" else joined.mean(1, keepdim=True)
        )

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take gradient steps of temperature, Q_A, actor and targets, then distil Q_A into Q_W."""
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._learn(self.replay_buffer.sample(batch_size))
        for _ in range(self.learning.noise_critic_steps):
            self.distil(self.replay_buffer.sample(batch_size).observations)
        self._n_updates += gradient_steps

    def _learn(self, batch: Any) -> None:
        b, obs = self.latent.decoding.magnitude, batch.observations
        u, log_prob = self.actor.action_log_prob(obs)
        log_prob = log_prob.reshape(-1, 1)
        alpha = self._temperature(log_prob)
        with torch.no_grad():
            following, next_log_prob = self.actor.action_log_prob(batch.next_observations)
            action = self.decode(batch.next_observations, b * following)
            value = self.combine(self.action_critic_target(batch.next_observations, action))
            value = value - alpha * next_log_prob.reshape(-1, 1)
            target = batch.rewards + (1 - batch.dones) * self.gamma * value
        values = self.action_critic(obs, batch.actions)
        loss = 0.5 * sum(F.mse_loss(q, target) for q in values)
        check_finite("critic loss", loss.detach(), self._n_updates)
        self._step(self.action_optimizer, loss)
        self._step(self.actor.optimizer, (alpha * log_prob - self.combine(self.critic(obs, u))).mean())
        polyak_update(self.action_critic.parameters(), self.action_critic_target.parameters(), self.tau)

    def _temperature(self, log_prob: Tensor) -> Tensor:
        """Step the temperature towards the wanted entropy; return its value before."""
        if self.ent_coef_optimizer is None:
            return self.ent_coef_tensor
        alpha = self.log_ent_coef.detach().exp()
        self._step(
            self.ent_coef_optimizer, -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()
        )
        return alpha

    def distil(self, obs: Tensor) -> float:
        """Fit Q_W(s, w / b) to Q_A(s, f(s, w)), head to head, on normal noise; return the loss before."""
        shape = (len(obs), *self.action_space.shape)
        noise = torch.randn(shape, generator=self.draws).to(obs.device)
        with torch.no_grad():
            targets = self.action_critic(obs, self.decode(obs, noise))
        values = self.critic(obs, noise / self.latent.decoding.magnitude)
        loss = 0.5 * sum(F.mse_loss(q, target) for q, target in zip(values, targets, strict=True))
        self._step(self.critic.optimizer, loss)
        return float(loss.detach())

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def policy_class(learning: Learning) -> type[SACPolicy]:
    """Return the class of the networks: stable-baselines3's own, or those with LayerNorm."""
    return NormedPolicy if learning.layer_norm else SACPolicy


def sac_settings(learning: Learning) -> dict[str, Any]:
    """Return the arguments of stable-baselines3's SAC for these settings."""
    return {
        "learning_rate": learning.learning_rate,
        "learning_starts": learning.warmup,
        "batch_size": learning.batch_size,
        "tau": learning.tau,
        "gamma": learning.gamma,
        "gradient_steps": learning.utd,
        "target_entropy": learning.target_entropy,
        "policy_kwargs": networks(learning),
        "seed": learning.seed,
        "device": "cpu",
    }


def make_learner(env: LatentNoiseVecEnv, learning: Learning) -> SAC:
    """Return DSRL-NA, or stable-baselines3's own SAC, which is DSRL-SAC in these environments."""
    if learning.variant == "na":
        return DSRLNA(env, learning)
    return SAC(policy_class(learning), env, **sac_settings(learning))
