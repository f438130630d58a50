"""The denoising error of finished latents: what supervised fine-tuning and Diffusion-DPO are made of."""

import torch
from noiseworks.core.interop import from_scheduler
from noiseworks.core.params import from_x0_epsilon
from noiseworks.core.schedules import Level, add_noise
from noiseworks.kits.diffusers_hosts import prediction_of, take_rows
from noiseworks.kits.image_tuning.policy import Policy
from torch import Tensor


class DenoisingError:
    """Mean squared error of a policy's unguided prediction of what noised latents hold.

    Args:
        policy: The policy; its adapters decide under which weights.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.host = policy, from_scheduler(policy.pipe.scheduler)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Return training timesteps, uniform over all, int64 [count] (float in (0, N] for flows)."""
        steps = torch.randint(self.host.num_train_timesteps, (count,), generator=generator)
        return (steps + 1).double() if self.host.is_flow else steps

    def __call__(self, x0: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the errors [n], with gradients.

        Args:
            x0: Finished latents [n, ...].
            ids: Prompt numbers, int64 [n].
            timesteps: From `draw_timesteps` [n].
            noise: Standard normal [n, ...]; winner and loser of a pair share it, and their timestep.
        """
        policy, device = self.policy, self.policy.device
        level = Level(*(part.to(device) for part in self.host.level(timesteps)))
        x0, noise = x0.to(device, torch.float32), noise.to(device, torch.float32)
        noised, target = (
            add_noise(x0, noise, level),
            from_x0_epsilon(x0, noise, level, self.host.prediction_type),
        )
        layout, found = policy.layout, policy.conditions
        kwargs = take_rows(found.cond, ids, len(policy.prompts), layout.shared)
        policy.calls += len(ids)
        output = policy.denoiser(
            **{layout.sample: noised.to(found.dtype)},
            timestep=timesteps.to(device) * layout.timestep_scale
            if self.host.is_flow
            else timesteps.to(device),
            **kwargs,
            return_dict=False,
        )
        return (prediction_of(output).float() - target).square().flatten(1).mean(1)
