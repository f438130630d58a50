"""Class-conditional samples by DDIM, with guidance."""

from collections.abc import Sequence

import torch
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.core.params import to_x0
from noiseworks.core.schedules import TableSchedule
from noiseworks.core.steps import ddim_step
from torch import Tensor, nn


def spaced_timesteps(num_steps: int, steps: int) -> list[int]:
    """Return original timesteps from the noisiest, num_steps - 1, to 0, evenly spaced and rounded."""
    return torch.linspace(num_steps - 1, 0, steps, dtype=torch.float64).round().long().tolist()


@torch.no_grad()
def sample(
    model: nn.Module,
    labels: Tensor,
    schedule: TableSchedule,
    *,
    steps: int = 50,
    guidance_scale: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Return images (B, C, H, W), clipped to [-1, 1].

    Args:
        model: A `DiT`, or a model with its `config` and `forward`.
        labels: (B,); `model.null_label` for none.
        schedule: The schedule that the model was trained with.
        steps: Network calls; with guidance each has twice the rows.
        guidance_scale: w of `ε_∅ + w (ε_y - ε_∅)`; 1 for none.
        seeds: One for each image, by default 0 to B - 1.
    """
    config, device = model.config, next(model.parameters()).device
    shape = (config.channels, config.image_size, config.image_size)
    keys = torch.cat([SeedSpec(seed).keys([0]) for seed in (range(len(labels)) if seeds is None else seeds)])
    x, labels = normal(keys, shape).to(device), labels.to(device)
    both = torch.cat([labels, torch.full_like(labels, model.null_label)])
    times = spaced_timesteps(schedule.num_steps, steps)
    for now, then in zip(times, [*times[1:], -1], strict=True):
        if guidance_scale == 1:
            epsilon = model(x, torch.full_like(labels, now), labels)[:, : config.channels]
        else:
            doubled = torch.full_like(both, now)
            with_label, without = model(x.repeat(2, 1, 1, 1), doubled, both)[:, : config.channels].chunk(2)
            epsilon = without + guidance_scale * (with_label - without)
        level, after = schedule.level(now), schedule.level(then)
        clean = to_x0(epsilon, x, level, "epsilon").clamp(-1, 1)
        x = ddim_step(x, clean, level, after).sample.to(x.dtype)
    return x.clamp(-1, 1)
