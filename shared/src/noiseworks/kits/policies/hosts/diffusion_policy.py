"""Policies of the original diffusion_policy library as hosts, low-dimensional and image, U-Net and transformer."""

from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies.chunking import ChunkSpec
from torch import Tensor


class OriginalHost:
    """A `DenoiserHost` on a policy object of the original library.

    Observations are what its `predict_action` takes: `obs` [B, To, Do], or one entry per camera and sensor for
    image policies.

    Args:
        policy: The policy object; its moving average is a policy as well.

    Raises:
        UnsupportedHostError: When it conditions by inpainting or by a local condition, or is no such policy.
    """

    def __init__(self, policy: Any) -> None:
        needed = ("model", "noise_scheduler", "normalizer", "horizon", "n_obs_steps", "n_action_steps")
        missing = [name for name in needed if not hasattr(policy, name)]
        if missing:
            raise UnsupportedHostError(f"{type(policy).__name__} lacks {', '.join(missing)}")
        self.transformer = hasattr(policy.model, "decoder")
        conditioned = policy.obs_as_cond if self.transformer else policy.obs_as_global_cond
        if not conditioned or getattr(policy, "obs_as_local_cond", False):
            raise UnsupportedHostError(
                f"{type(policy).__name__} conditions by inpainting or locally; only policies whose observations "
                "are a global condition (obs_as_global_cond, obs_as_cond) are supported"
            )
        if getattr(policy, "pred_action_steps_only", False):
            raise UnsupportedHostError("policies that predict the executed actions only are not supported")
        self.policy, self.model, self.scheduler = policy, policy.model, policy.noise_scheduler
        self.normalizer = policy.normalizer["action"]
        self.horizon, self.n_obs_steps = policy.horizon, policy.n_obs_steps
        self.n_action_steps, self.action_dim = policy.n_action_steps, policy.action_dim
        image = hasattr(policy, "obs_encoder")
        # Low-dimensional policies hold their start in a switch; a transformer's and an image policy's is fixed.
        current = image or getattr(policy, "oa_step_convention", self.transformer)
        self.chunk = ChunkSpec(self.horizon, self.n_obs_steps, self.n_action_steps, bool(current))
        self.image = image

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return the condition: [B, G] for a U-Net, [B, To, G] for a transformer.

        Raises:
            InputError: When `obs` of a low-dimensional policy is missing or the number of steps is wrong.
        """
        device = next(self.model.parameters()).device
        if not self.image and "obs" not in obs:
            raise InputError(
                f"the observation lacks obs, which the policy reads; it holds {', '.join(sorted(obs))}"
            )
        for name, value in obs.items():
            if value.shape[1] != self.n_obs_steps:
                raise InputError(f"{name} must hold {self.n_obs_steps} steps, got {value.shape[1]}")
        moved = {name: value.to(device) for name, value in obs.items()}
        rows = len(next(iter(moved.values())))
        if self.image:
            normal = self.policy.normalizer.normalize(moved)
            flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in normal.items()}
            feature = self.policy.obs_encoder(flat).reshape(rows, self.n_obs_steps, -1)
        else:
            feature = self.policy.normalizer["obs"].normalize(moved["obs"])
        return feature if self.transformer else feature.reshape(rows, -1)

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] at diffusion steps k, [B] or one number."""
        steps = torch.as_tensor(k, device=x.device)
        steps = steps.expand(len(x)) if steps.ndim == 0 else steps
        if self.transformer:
            return self.model(x, steps, cond)
        return self.model(x, steps, local_cond=None, global_cond=cond)
