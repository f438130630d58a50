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
    timesteps: Sequence[int] | None = None,
    eta: float = 0.0,
    clip: bool = True,
    prediction_type: str = "epsilon",
) -> Tensor:
    """Return images (B, C, H, W), or latents.

    Args:
        model: A `DiT`, or a model with its `config` and `forward`.
        labels: (B,); `model.null_label` for none.
        schedule: The schedule that the model was trained with.
        steps: Network calls; with guidance each has twice the rows.
        guidance_scale: w of `ε_∅ + w (ε_y - ε_∅)`, with ε whatever the model predicts; 1 for none.
        seeds: One for each image, by default 0 to B - 1.
        timesteps: Instead of `steps` evenly spaced ones, those of the network calls, falling; after the last one the
            predicted clean image comes out.
        eta: 0 is deterministic, 1 has the variance of DDPM.
        clip: Whether predicted clean images are clipped to [-1, 1]; not so for latents.
        prediction_type: What the model's first channels predict, one of `core.params.PREDICTION_TYPES`.
    """
    config, device = model.config, next(model.parameters()).device
    shape = (config.channels, config.image_size, config.image_size)
    seeds = range(len(labels)) if seeds is None else seeds

    def drawn(stream: int) -> Tensor:
        return normal(torch.cat([SeedSpec(seed, stream).keys([0]) for seed in seeds]), shape).to(device)

    x, labels = drawn(0), labels.to(device)
    both = torch.cat([labels, torch.full_like(labels, model.null_label)])
    times = list(timesteps or spaced_timesteps(schedule.num_steps, steps))
    for number, (now, then) in enumerate(zip(times, [*times[1:], -1], strict=True), start=1):
        if guidance_scale == 1:
            output = model(x, torch.full_like(labels, now), labels)[:, : config.channels]
        else:
            doubled = torch.full_like(both, now)
            with_label, without = model(x.repeat(2, 1, 1, 1), doubled, both)[:, : config.channels].chunk(2)
            output = without + guidance_scale * (with_label - without)
        level, after = schedule.level(now), schedule.level(then)
        clean = to_x0(output, x, level, prediction_type)
        clean = clean.clamp(-1, 1) if clip else clean
        noise = drawn(number) if eta and then >= 0 else None
        x = ddim_step(x, clean, level, after, eta=eta, noise=noise).sample.to(x.dtype)
    return x.clamp(-1, 1) if clip else x
