"""LeRobot's `DiffusionPolicy` as a host: sizes from its configuration, network and encoder from its attributes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import ActionNormalizer

_IMAGES = "observation.images"


class LeRobotHost:
    """A `DenoiserHost` on a LeRobot policy object.

    Observations are its batch keys with a time axis: `observation.state` [B, To, Ds],
    `observation.environment_state`, `observation.images.*`. Since release 0.4 a policy speaks normalised units
    and its processors normalise outside of it; pass `normalizer` to get actions in environment units.

    Args:
        policy: The policy object.
        normalizer: Of the actions; identity by default.

    Raises:
        UnsupportedHostError: When an attribute that is needed is missing.
    """

    def __init__(self, policy: Any, normalizer: "ActionNormalizer | None" = None) -> None:
        parts = ("unet", "noise_scheduler", "_prepare_global_conditioning")
        missing = [name for name in parts if not hasattr(getattr(policy, "diffusion", None), name)]
        if missing:
            raise UnsupportedHostError(
                f"{type(policy).__name__} lacks diffusion.{', diffusion.'.join(missing)}"
            )
        config = policy.config
        self.policy, self.model, self.scheduler = policy, policy.diffusion, policy.diffusion.noise_scheduler
        self.horizon, self.n_obs_steps = config.horizon, config.n_obs_steps
        self.n_action_steps, self.action_dim = config.n_action_steps, config.action_feature.shape[0]
        self.image_keys = list(config.image_features or ())
        self.normalizer = normalizer or LinearNormalizer.identity(self.action_dim)
        policy.eval()

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return the condition [B, G] of observations with a time axis.

        Raises:
            InputError: When an image of the configuration is missing or the number of steps is wrong.
        """
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in obs.items()}
        absent = [key for key in self.image_keys if key not in batch]
        if absent:
            raise InputError(f"the observation lacks {', '.join(absent)}, which the policy was trained with")
        for name, value in batch.items():
            if value.shape[1] != self.n_obs_steps:
                raise InputError(f"{name} must hold {self.n_obs_steps} steps, got {value.shape[1]}")
        if self.image_keys:
            batch[_IMAGES] = torch.stack([batch[key] for key in self.image_keys], dim=-4)
        return self.model._prepare_global_conditioning(batch)

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] at diffusion steps k, [B] or one number."""
        steps = torch.as_tensor(k, device=x.device)
        return self.model.unet(x, steps.expand(len(x)) if steps.ndim == 0 else steps, global_cond=cond)
