"""Diffusion policies as decoders: native ones, LeRobot's and the original library's, by deterministic sampling."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.dsrl.decoder import Observation
from noiseworks.kits.policies.chunking import ChunkSpec
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.loop import DenoisingLoop
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.steps import sampler_table
from torch import Tensor

Read = str | Callable[[Observation], Mapping[str, np.ndarray]]


class HostDecoder:
    """A policy's deterministic DDIM sampler; its weights are frozen and put into evaluation mode.

    Args:
        policy: A host of `kits.policies`, or a policy that `as_host` knows.
        steps: Denoising steps.
        read: The policy's name of the environment's observation, where that is a single array; or a function from the
            environment's observation to a dictionary under the policy's names. A dictionary is passed by its own names.
            With several observation steps an array holds them side by side, oldest first.

    Raises:
        InputError: When the policy is still in training mode, or a number is out of range.
        UnsupportedHostError: When it is no policy that is known.
    """

    def __init__(self, policy: object, steps: int = 8, read: Read = "obs") -> None:
        self.host: DenoiserHost = as_host(policy)
        if getattr(policy, "training", False):
            raise InputError("the policy is in training mode, which draws dropout: call policy.eval() first")
        self.table = sampler_table(self.host.scheduler, "ddim", steps)
        self.loop, self.read = DenoisingLoop(self.host, 1), read
        host = self.host
        current = getattr(getattr(host, "chunk", None), "start_at_current", True)
        self.spec = ChunkSpec(host.horizon, host.n_obs_steps, host.n_action_steps, current)
        self.noise_shape = (host.horizon, host.action_dim)
        self.chunk, self.action_dim = host.n_action_steps, host.action_dim

    @torch.no_grad()
    def decode(self, obs: Observation, noise: Tensor) -> Tensor:
        """Return actions [B, C, Da] of observations and initial noise [B, T, Da]."""
        if callable(self.read):
            obs = self.read(obs)
        named = obs if isinstance(obs, Mapping) else {self.read: obs}
        cond = self.host.encode({name: self._window(value) for name, value in named.items()})
        x = self.loop.start(len(noise))
        x.copy_(noise)
        prediction = self.loop.run(self.table, cond, len(noise), None)
        return self.host.normalizer.unnormalize(prediction)[:, self.spec.executed].clone()

    def _window(self, value: np.ndarray) -> Tensor:
        steps, tensor = self.host.n_obs_steps, torch.as_tensor(np.asarray(value), dtype=torch.float32)
        if tensor.ndim == 2:
            if tensor.shape[1] % steps:
                raise InputError(
                    f"the policy reads {steps} observations, an array of width {tensor.shape[1]} does not hold so many"
                )
            return tensor.reshape(len(tensor), steps, -1)
        return tensor if steps > 1 else tensor[:, None]
