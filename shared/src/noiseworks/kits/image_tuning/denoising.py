"""The denoising error of finished latents: what supervised fine-tuning and Diffusion-DPO are made of."""

from collections.abc import Mapping
from typing import Any

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

    def draw_timesteps(self, count: int, generator: torch.Generator, among: Tensor | None = None) -> Tensor:
        """Return training timesteps, int64 [count] (float in (0, N] for flows).

        Args:
            count: How many.
            generator: Source of randomness.
            among: What they are drawn from uniformly, such as the timesteps of a few-step sampler; by default all.
        """
        if among is not None:
            return among[torch.randint(len(among), (count,), generator=generator)]
        steps = torch.randint(self.host.num_train_timesteps, (count,), generator=generator)
        return (steps + 1).double() if self.host.is_flow else steps

    def __call__(
        self, x0: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor, further: Mapping[str, Any] = {}
    ) -> Tensor:
        """Return the errors [n], with gradients.

        Args:
            x0: Finished latents [n, ...].
            ids: Prompt numbers, int64 [n].
            timesteps: From `draw_timesteps` [n].
            noise: Standard normal [n, ...]; winner and loser of a pair share it, and their timestep.
            further: More arguments of the denoiser, one row a sample; mappings join those that the host gives.
        """
        policy, device = self.policy, self.policy.device
        layout, found = policy.layout, policy.conditions
        level = Level(*(part.to(device) for part in self.host.level(timesteps)))
        wide = torch.promote_types(found.dtype, torch.float32)
        x0, noise = x0.to(device, wide), noise.to(device, wide)
        noised, target = (
            add_noise(x0, noise, level),
            from_x0_epsilon(x0, noise, level, self.host.prediction_type),
        )
        kwargs = take_rows(found.cond, ids, len(policy.prompts), layout.shared)
        for name, value in further.items():
            old = kwargs.get(name)
            kwargs[name] = {**(old or {}), **value} if isinstance(value, Mapping) else value
        policy.calls += len(ids)
        output = policy.denoiser(
            **{layout.sample: noised.to(found.dtype)},
            timestep=timesteps.to(device) * layout.timestep_scale
            if self.host.is_flow
            else timesteps.to(device),
            **kwargs,
            return_dict=False,
        )
        return (prediction_of(output).to(wide) - target).square().flatten(1).mean(1)

    def of_groups(
        self, x0: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor, further: Mapping[str, Any] = {}
    ) -> Tensor:
        """Return the errors of groups of k latents (winner and loser) in one call of the denoiser [n, k].

        Args:
            x0: Finished latents [n, k, ...].
            ids: Each group's prompt number, int64 [n].
            timesteps: Each group's timestep [n].
            noise: Standard normal, shared by the group [n, ...], or each member's own [n, k, ...].
            further: More arguments of the denoiser, a row a sample, the k of a group in a row.
        """
        k = x0.shape[1]
        each = noise if noise.ndim == x0.ndim else noise.unsqueeze(1).expand_as(x0)
        ids, timesteps = (values.repeat_interleave(k) for values in (ids, timesteps))
        return self(x0.flatten(0, 1), ids, timesteps, each.flatten(0, 1), further).view(-1, k)
