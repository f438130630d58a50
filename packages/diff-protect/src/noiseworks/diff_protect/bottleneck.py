"""Why the encoder is the weak point: five measurements of section 3 of the paper."""

from dataclasses import dataclass, replace

import torch
from noiseworks.diff_protect.methods import protect_with
from noiseworks.diff_protect.options import Method
from noiseworks.kits.protection.engine import draw_normal, random_signs, streams
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.metrics import latent_shift
from noiseworks.kits.protection.objectives import Semantic, TargetLatent, semantic_loss, stripes
from noiseworks.kits.protection.options import Budget
from torch import Tensor


@dataclass(frozen=True)
class Bottleneck:
    """What was measured, means over the images.

    Attributes:
        latent_shift: Method -> |z(x') - z(x)| / |z(x)|.
        amplification: Method -> largest change of a latent over the largest change of a pixel (model's range).
        shift_of_latent_attack: Relative change of eps_theta when the latent moves by the same share at random signs of
            its own gradient, against that by the encoder's attack: (denoiser, encoder).
        gradient_agreement: Mean cosine of gradients from independent draws: through the U-Net, and of the encoder.
        gradient_norm: Mean norm of them.
    """

    latent_shift: dict[str, float]
    amplification: dict[str, float]
    shift_of_latent_attack: tuple[float, float]
    gradient_agreement: tuple[float, float]
    gradient_norm: tuple[float, float]


def analyse_bottleneck(
    host: Host,
    images: Tensor,
    budget: Budget,
    methods: tuple[str, ...] = ("random", "photoguard", "advdm+", "sds-"),
) -> Bottleneck:
    """Measure where small changes of the image are amplified.

    Args:
        host: The pipeline.
        images: [B, 3, H, W] in [0, 1].
        budget: Of the attacks.
        methods: The protections whose latents are looked at.
    """
    shifts, amplified = {}, {}
    attacked = images
    for name in methods:
        attacked = protect_with(Method(method=name), host, images, budget).images
        shifts[name] = float(latent_shift(host, images, attacked).mean())
        with torch.no_grad():
            moved = (host.encode(attacked) - host.encode(images)).abs().amax()
        amplified[name] = float(moved / (2 * (attacked - images).abs().amax()).clamp(min=1e-12))
    share = float(latent_shift(host, images, attacked).mean())
    denoiser = _denoiser_change(host, images, share, budget)
    goal = stripes(*images.shape[-2:]).to(images)
    agreement, norms = zip(
        *(_agreement(objective, images, budget) for objective in (Semantic(host), TargetLatent(host, goal))),
        strict=True,
    )
    return Bottleneck(shifts, amplified, (denoiser, share), agreement, norms)


def _denoiser_change(host: Host, images: Tensor, share: float, budget: Budget) -> float:
    """Return |eps(z' + ...) - eps(z + ...)| / |eps| when latents move along the gradient's signs by a share of |z|."""
    generators = streams(budget, len(images))
    with torch.no_grad():
        latents = host.encode(images)
    steps = torch.full((len(images),), len(host.alphas_cumprod) // 2, device=latents.device)
    noise = draw_normal(generators, latents.shape[1:], latents)
    latents.requires_grad_()
    before = host.predict(host.noised(latents, noise, steps), steps, latents)
    (slope,) = torch.autograd.grad(semantic_loss(before, noise).sum(), latents)
    with torch.no_grad():
        size = share * latents.flatten(1).norm(dim=1) / latents[0].numel() ** 0.5
        moved = latents + slope.sign() * size.view(-1, 1, 1, 1)
        after = host.predict(host.noised(moved, noise, steps), steps, moved)
        change = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    return float(change.mean())


def _agreement(
    objective: Semantic | TargetLatent, images: Tensor, budget: Budget, draws: int = 4
) -> tuple[float, float]:
    found = torch.stack(
        [
            objective(images, streams(replace(budget, seed=budget.seed + 1000 * draw), len(images)))[
                0
            ].flatten(1)
            for draw in range(draws)
        ]
    )
    unit = found / found.norm(dim=2, keepdim=True).clamp(min=1e-30)
    cosines = torch.einsum("abi,cbi->bac", unit, unit)
    others = (cosines.sum(dim=(1, 2)) - draws) / (draws * (draws - 1))
    return float(others.mean()), float(found.norm(dim=2).mean())


def random_shift(host: Host, images: Tensor, budget: Budget) -> float:
    """Return the mean latent shift of random signs of the same size: what an attack has to exceed."""
    return float(latent_shift(host, images, random_signs(images, budget).images).mean())
