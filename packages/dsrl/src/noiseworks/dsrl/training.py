"""Training of a steered policy in rounds that can be stopped and gone on with, and evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from noiseworks.core.noise import mix64
from noiseworks.dsrl.decoder import NoiseDecoder
from noiseworks.dsrl.latent_env import LatentNoiseVecEnv
from noiseworks.dsrl.noise_aliasing import DSRLNA, make_learner
from noiseworks.dsrl.options import Decoding, Evaluation, Learning
from noiseworks.dsrl.steering import BestOfPolicy, SteeredPolicy
from noiseworks.kits.rl.options import Recorded, World
from noiseworks.kits.rl.sb3 import GymnasiumVecEnv
from noiseworks.kits.rl.sources import check_widths, load_data, make_env
from noiseworks.kits.rl.stepping import EpisodeReport, evaluate_returns
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Fit, Run, make_fabric, rounds
from stable_baselines3 import SAC

STORED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class SteeringLoop:
    """Rounds of a learner; each begins with fresh episodes, so that no state of an environment has to be kept.

    The frozen policy has no part in the state.

    Args:
        learner: DSRL-NA, or SAC over noise.
        learning: Settings.
    """

    def __init__(self, learner: SAC, learning: Learning) -> None:
        self.learner, self.learning = learner, learning
        self.env: LatentNoiseVecEnv = learner.get_env()

    def round(self, step: int) -> Mapping[str, float]:
        """Decide and learn for a round; return the chunks decided and the environments' steps."""
        left = self.learning.decisions - self.learner.num_timesteps
        seed = mix64(self.learning.seed, step) >> 33  # 31 bits
        self.env.seed(seed)
        self.learner._last_obs = None  # stable-baselines3 then resets the environments
        with numpy_seeded(seed):  # its replay buffer draws from numpy's global state
            self.learner.learn(min(left, self.learning.round_decisions), reset_num_timesteps=False)
        return {"decisions": self.learner.num_timesteps, "environment_steps": self.env.steps}

    def _parts(self) -> dict[str, Any]:
        learner = self.learner
        parts = {
            "policy": learner.policy,
            "actor_optimizer": learner.actor.optimizer,
            "critic_optimizer": learner.critic.optimizer,
        }
        if learner.ent_coef_optimizer is not None:
            parts["temperature_optimizer"] = learner.ent_coef_optimizer
        if isinstance(learner, DSRLNA):
            parts |= {
                "action_critic": learner.action_critic,
                "action_critic_target": learner.action_critic_target,
                "action_optimizer": learner.action_optimizer,
            }
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Return networks, all optimisers, temperature, replay buffer, draws and counts."""
        learner, buffer = self.learner, self.learner.replay_buffer
        rows = buffer.buffer_size if buffer.full else buffer.pos
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state["replay"] = {name: torch.from_numpy(getattr(buffer, name)[:rows].copy()) for name in STORED}
        state["counts"] = {
            "position": buffer.pos,
            "full": buffer.full,
            "decisions": learner.num_timesteps,
            "updates": learner._n_updates,
            "environment_steps": self.env.steps,
        }
        if learner.ent_coef_optimizer is not None:
            state["temperature"] = learner.log_ent_coef.detach().clone()
        if isinstance(learner, DSRLNA):
            state["draws"] = learner.draws.get_state()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        learner, buffer, counts = self.learner, self.learner.replay_buffer, state["counts"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in STORED:
            rows = state["replay"][name].numpy()
            getattr(buffer, name)[: len(rows)] = rows
        buffer.pos, buffer.full = counts["position"], counts["full"]
        learner.num_timesteps, learner._n_updates = counts["decisions"], counts["updates"]
        self.env.steps = counts["environment_steps"]
        if "temperature" in state:
            learner.log_ent_coef.data.copy_(state["temperature"])
        if "draws" in state:
            learner.draws.set_state(state["draws"])


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global random state for a block, and restore it."""
    before = np.random.get_state()
    np.random.set_state(np.random.RandomState(seed).get_state())
    try:
        yield
    finally:
        np.random.set_state(before)


def load_recorded(world: World, learning: Learning) -> Transitions | None:
    """Return the recorded experience that the settings name, if any.

    Raises:
        InputError: When it cannot be found or is of another task.
    """
    if learning.data is None:
        return None
    named = Recorded(learning.data, learning.record_steps, 0, world.episode_steps, world.reward)
    found = load_data(named, needs="dsrl")
    check_widths(make_env(world, 1, needs="dsrl"), found.obs_dim, found.action_dim, "the recorded policy")
    return found


def train(
    decoder: NoiseDecoder,
    world: World,
    decoding: Decoding,
    learning: Learning,
    run: Run | None = None,
    *,
    recorded: Transitions | None = None,
    progress: bool = False,
) -> tuple[SAC, int]:
    """Return a learner that has decided `learning.decisions` chunks, and the environment steps that those took.

    Args:
        decoder: The frozen policy.
        world: The environment.
        decoding: Magnitude and ties of the noise.
        learning: Settings.
        run: The open run, None to keep nothing on the way.
        recorded: What the settings name as data, where `load_recorded` has read it already.
        progress: Whether to show a bar.
    """
    if recorded is None:
        recorded = load_recorded(world, learning)
    venv = GymnasiumVecEnv(make_env(world, learning.envs, needs="dsrl", chunk=decoder.chunk))
    env = LatentNoiseVecEnv(venv, decoder, decoding)
    with torch.random.fork_rng(devices=[]):
        learner = make_learner(env, learning)  # stable-baselines3 seeds torch
        if recorded is not None:
            learner.add_recorded(recorded)
        count = -(-learning.decisions // learning.round_decisions)
        options = Fit(max_steps=count, device="cpu", checkpoint_every=learning.checkpoint_every, log_every=1)
        loop = SteeringLoop(learner, learning)
        rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
    return learner, env.steps


def evaluate(
    policy: SteeredPolicy | BestOfPolicy, world: World, evaluation: Evaluation, *, paths: int = 0
) -> EpisodeReport:
    """Return the episodes of a policy, and the paths of so many; lengths count chunks."""
    env = make_env(
        world, min(evaluation.together, evaluation.episodes), needs="dsrl", chunk=policy.decoder.chunk
    )
    return evaluate_returns(env, policy.act, evaluation.episodes, evaluation.evaluation_seed, paths=paths)
