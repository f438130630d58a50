"""Held-out denoising loss on fixed noise: the most sensitive comparison of small models."""

import torch
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.core.schedules import TableSchedule, add_noise
from torch import Tensor, nn

BINS = 10


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    schedule: TableSchedule,
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> Tensor:
    """Return the squared error of the noise prediction, float32 (n, 10): one timestep of each tenth for every image.

    Timestep and noise of image i depend on (seed, i) alone, so they are the same for all models.

    Args:
        model: `model(x, t, y) -> prediction`, whose first channels are the noise.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,).
        schedule: The schedule that the model was trained with.
        seed: Of the bank.
        batch_size: Images that are evaluated together.
    """
    n, width = len(images), schedule.num_steps // BINS
    device = next(model.parameters()).device
    places = torch.randint(width, (n, BINS), generator=torch.Generator().manual_seed(seed))
    losses = torch.empty(n, BINS)
    for part in range(BINS):
        noise = normal(SeedSpec(seed, part).keys(range(n)), images.shape[1:]).to(images.dtype)
        for first in range(0, n, batch_size):
            rows = slice(first, first + batch_size)
            t = part * width + places[rows, part]
            x = add_noise(images[rows], noise[rows], schedule.level(t)).to(device)
            found = model(x, t.to(device), labels[rows].to(device))[:, : images.shape[1]].cpu()
            losses[rows, part] = (found - noise[rows]).square().flatten(1).mean(1)
    return losses
