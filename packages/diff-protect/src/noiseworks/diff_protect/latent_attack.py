"""Score distillation on the latent itself, then decoded; the change of pixels has no bound."""

from collections.abc import Sequence

import torch
from noiseworks.kits.protection.engine import Protected, draw_normal, draw_steps, streams
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.objectives import semantic_loss
from noiseworks.kits.protection.options import Budget
from torch import Tensor


@torch.no_grad()
def attack_latents(
    host: Host, images: Tensor, budget: Budget, *, generators: Sequence[torch.Generator] | None = None
) -> Protected:
    """Return decoded images whose latents were moved by signs of the score, descending, within eps in latent units.

    Args:
        host: The pipeline.
        images: [B, 3, H, W] in [0, 1].
        budget: Its eps and step are taken in units of the latent.
        generators: One an image.
    """
    generators = streams(budget, len(images)) if generators is None else generators
    start = host.encode(images)
    latents, eps, history = start.clone(), budget.eps_255 / 255, []
    for step in range(budget.steps):
        steps = draw_steps(generators, 0, len(host.alphas_cumprod), latents)
        noise = draw_normal(generators, latents.shape[1:], latents)
        predicted = host.predict(host.noised(latents, noise, steps), steps, latents)
        latents = latents - budget.size(step) * (predicted - noise).sign()
        latents = start + (latents - start).clamp(-eps, eps)
        history.append(semantic_loss(predicted, noise).mean().cpu())
    return Protected(host.decode(latents).clamp(0, 1), torch.stack(history), 0.0)
