"""The decision problem over noise: stable-baselines3's environments whose actions start a frozen policy's denoising.

Any learner of stable-baselines3 drives it; with its SAC, unchanged, it is DSRL-SAC.
"""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.dsrl.decoder import NoiseDecoder, check_decoder, noise_dim, untie
from noiseworks.dsrl.options import Decoding
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class LatentNoiseVecEnv(VecEnvWrapper):
    """Environments whose action is the initial noise w in [-b, b]^D of a frozen policy, whose chunk is then played.

    `info["decoded_action"]` holds the played chunk, float32 [C, Da], and `steps` counts the environments' own steps.

    Args:
        venv: Environments whose action is a chunk [C, Da]: `kits.rl.stepping.ActionChunk` makes them.
        decoder: The frozen policy.
        decoding: b, and how noise is tied.

    Raises:
        InputError: When the environments do not play the decoder's chunks, or the decoder is not deterministic.
    """

    def __init__(self, venv: VecEnv, decoder: NoiseDecoder, decoding: Decoding | None = None) -> None:
        decoding = decoding or Decoding()
        chunk = (decoder.chunk, decoder.action_dim)
        space = venv.action_space
        if not isinstance(space, Box) or space.shape != chunk or not space.is_bounded():
            raise InputError(
                f"the policy gives chunks of shape {chunk}, the environments take {space}: wrap each of them in "
                f"ActionChunk(env, {chunk[0]})"
            )
        b = decoding.magnitude
        noise = Box(-b, b, (noise_dim(decoder.noise_shape, decoding.tie),), np.float32)
        super().__init__(venv, action_space=noise)
        self.decoder, self.decoding, self.chunk_space = decoder, decoding, space
        self.observations: Any = None
        self.decoded = np.zeros((self.num_envs, *chunk), np.float32)
        self.steps = 0
        self._checked = False

    def decode(self, obs: Any, noise: torch.Tensor) -> torch.Tensor:
        """Return the actions [B, C, Da], within the environments' bounds, of noise [B, D]."""
        made = self.decoder.decode(obs, untie(noise, self.decoder.noise_shape, self.decoding.tie))
        low, high = (
            torch.as_tensor(bound, device=made.device)
            for bound in (self.chunk_space.low, self.chunk_space.high)
        )
        return made.clamp(low, high)

    def reset(self) -> Any:
        """Begin episodes everywhere."""
        self.observations = self.venv.reset()
        if not self._checked:
            check_decoder(self.decoder, self.observations)
            self._checked = True
        return self.observations

    def step_async(self, actions: np.ndarray) -> None:
        """Decode noise [N, D] and play the chunks."""
        noise = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        self.decoded = self.decode(self.observations, noise).cpu().numpy()
        self.venv.step_async(self.decoded)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return what the chunks led to.

        Raises:
            NonFiniteError: When a reward is not finite.
        """
        self.observations, rewards, dones, infos = self.venv.step_wait()
        check_finite("reward", torch.as_tensor(rewards), self.steps)
        for info, decoded in zip(infos, self.decoded, strict=True):
            info["decoded_action"] = decoded
            self.steps += info.get("steps", len(decoded))
        return self.observations, rewards, dones, infos
