"""What protections descend, and which networks the gradient runs through.

| objective | encoder backward | U-Net forward | U-Net backward |
|---|---|---|---|
| `TargetLatent` (PhotoGuard's encoder attack, the textural term) | 1 | 0 | 0 |
| `Semantic` (AdvDM; Mist with a target) | 1 | 1 | 1 |
| `ScoreDistillation` (SDS; SDST with a target) | 1 | 1 | 0 |
| `SampledImage` (PhotoGuard's diffusion attack) | 1 | steps | steps |

Each is called with images [B, 3, H, W] in [0, 1] and one generator an image, and returns the gradient with respect to
the images and the objective [B]; the engine minimises. With a mask (1 where the editor repaints) the networks see the
image with grey in the repainted region, as an inpainting pipeline does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from noiseworks.kits.protection.engine import draw_normal, draw_steps
from noiseworks.kits.protection.hosts import Host
from torch import Tensor


def masked_image(images: Tensor, mask: Tensor | None) -> Tensor:
    """Return images with mid-grey, which is 0 to the model, where the mask is 1."""
    return images if mask is None else torch.where(mask < 0.5, images, 0.5)


def through_encoder(
    host: Host,
    images: Tensor,
    mask: Tensor | None,
    spread: Tensor | None,
    loss: Callable[[Tensor], Tensor],
    two_stages: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the gradient [B, 3, H, W] of a loss of the masked images' latents, and the loss [B].

    In two stages the loss's graph is freed before the encoder's is built, so that the larger of the two is held instead
    of both, for one more pass of the encoder. The gradient is the same.

    Args:
        host: The pipeline.
        images: [B, 3, H, W] in [0, 1].
        mask: [B, 1, H, W], 1 where the editor repaints, or None.
        spread: Noise of the posterior's sample, [B, C, h, w]; None takes the mean.
        loss: Latents [B, C, h, w] -> [B].
        two_stages: Whether to do so.
    """
    images = images.detach().requires_grad_()
    if not two_stages:
        value = loss(host.encode(masked_image(images, mask), spread))
        return torch.autograd.grad(value.sum(), images)[0], value
    with torch.no_grad():
        latents = host.encode(masked_image(images, mask), spread)
    value = loss(latents.requires_grad_())
    (at_latent,) = torch.autograd.grad(value.sum(), latents)
    again = host.encode(masked_image(images, mask), spread)
    return torch.autograd.grad(again, images, at_latent)[0], value


def stripes(height: int, width: int, period: int = 8) -> Tensor:
    """Return a target [1, 3, H, W] in [0, 1]: diagonal black and white stripes crossed by coloured ones."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    first, second = (x + y) % period < period / 2, (x - y) % (2 * period) < period
    return torch.stack([first, first ^ second, second]).float()[None]


@dataclass
class TargetLatent:
    """Distance to a target's latent: rate * sum (z(x) - z(y))^2.

    Source: PhotoGuard, arXiv 2302.06588, eq. 3; the textural term of Mist, arXiv 2305.12683.

    Attributes:
        host: The pipeline.
        target: Image [1 or B, 3, H, W] in [0, 1]; None is the zero latent.
        mask: [B, 1, H, W], 1 where the editor repaints.
        direction: 1 pulls to the target, -1 pushes away.
        sample: Whether the posterior is sampled, or its mean taken.
    """

    host: Host
    target: Tensor | None = None
    mask: Tensor | None = None
    direction: float = 1.0
    sample: bool = True

    def __post_init__(self) -> None:
        self._latent = None
        if self.target is not None:
            with torch.no_grad():
                self._latent = self.host.encode(self.target)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient and the distance."""
        images = images.detach().requires_grad_()
        latents = _latents(self.host, masked_image(images, self.mask), generators, self.sample)
        value = self.direction * textural_loss(latents, self._latent)
        return torch.autograd.grad(value.sum(), images)[0], value


def textural_loss(latents: Tensor, target: Tensor | None) -> Tensor:
    """Return sum (z - z_y)^2 of each image, [B]; without a target sum z^2."""
    return (latents if target is None else latents - target).square().flatten(1).sum(dim=1)


def semantic_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Return the denoising loss of each image, mean (eps_theta - eps)^2, [B]."""
    return (predicted - noise).square().flatten(1).mean(dim=1)


@dataclass
class Semantic:
    """The denoising loss through U-Net and encoder, ascended or descended, with an optional textural term.

    Source: AdvDM, arXiv 2302.04578, eq. 6. With a target it is Mist: direction 1 minimises L_T - rate L_S.

    Attributes:
        host: The pipeline.
        direction: 1 ascends the denoising loss, -1 descends it.
        target: Image of the textural term, [1 or B, 3, H, W].
        rate: Weight of the denoising loss beside the textural term.
        mask: [B, 1, H, W], 1 where the editor repaints.
        sample: Whether the posterior is sampled, or its mean taken.
        two_stages: Whether memory is saved by `through_encoder`.
    """

    host: Host
    direction: float = 1.0
    target: Tensor | None = None
    rate: float = 1e4
    mask: Tensor | None = None
    sample: bool = True
    two_stages: bool = False

    def __post_init__(self) -> None:
        self._latent = None
        if self.target is not None:
            with torch.no_grad():
                self._latent = self.host.encode(self.target)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient and the objective."""
        spread = _spread(self.host, images, generators, self.sample)
        steps, noise = _level(self.host, images, generators)

        def loss(latents: Tensor) -> Tensor:
            noisy = self.host.noised(latents, noise.to(latents), steps)
            predicted = self.host.predict(noisy, steps, latents, self.mask)
            value = -self.direction * semantic_loss(predicted, noise.to(latents))
            return value if self._latent is None else textural_loss(latents, self._latent) + self.rate * value

        return through_encoder(self.host, images, self.mask, spread, loss, self.two_stages)


@dataclass
class ScoreDistillation:
    """Score distillation: the U-Net's Jacobian is dropped, so that it runs without a graph.

    The gradient at the latent is r = eps_theta(z_t) - eps, pushed through the encoder alone. With a target the textural
    term is descended along with it, in the same pass of the encoder: J^T (2 (z - z_y) - g rate r).
    Source: Diff-Protect, arXiv 2311.12832, sections 4.2 and 4.3 (SDS and SDST).

    Attributes:
        host: The pipeline.
        direction: g: 1 ascends the denoising loss, -1 descends it.
        target: Image of the textural term, [1 or B, 3, H, W].
        rate: Weight of the score beside the textural term.
        mask: [B, 1, H, W], 1 where the editor repaints.
        sample: Whether the posterior is sampled, or its mean taken.
    """

    host: Host
    direction: float = -1.0
    target: Tensor | None = None
    rate: float = 5.0
    mask: Tensor | None = None
    sample: bool = True

    def __post_init__(self) -> None:
        self._latent = None
        if self.target is not None:
            with torch.no_grad():
                self._latent = self.host.encode(self.target)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient, and the denoising loss with its sign."""
        images = images.detach().requires_grad_()
        latents = _latents(self.host, masked_image(images, self.mask), generators, self.sample)
        with torch.no_grad():
            steps, noise = _level(self.host, images, generators)
            noise = noise.to(latents)
            noisy = self.host.noised(latents, noise, steps)
            predicted = self.host.predict(noisy, steps, latents, self.mask)
            at_latent = -self.direction * (predicted - noise)
            value = -self.direction * semantic_loss(predicted, noise)
            if self._latent is not None:
                at_latent = self.rate * at_latent + 2 * (latents - self._latent)
        return torch.autograd.grad(latents, images, at_latent)[0], value


@dataclass
class SampledImage:
    """Distance of a sampled edit to a grey image, through a short differentiable sampler.

    Source: PhotoGuard, arXiv 2302.06588, section 4.2. DDIM with eta 0 in the place of eta 1, so that a run needs no
    further noise.

    Attributes:
        host: A pipeline that inpaints.
        mask: [B, 1, H, W], 1 where the editor repaints.
        steps: Steps of the sampler.
        guidance_scale: Of the empty prompt against the host's; at 1 one pass a step.
        sample: Whether the posterior is sampled, or its mean taken.
    """

    host: Host
    mask: Tensor | None = None
    steps: int = 4
    guidance_scale: float = 1.0
    sample: bool = True

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient and the Euclidean distance of the edit to mid-grey in the model's range."""
        images = images.detach().requires_grad_()
        masked = _latents(self.host, masked_image(images, self.mask), generators, self.sample)
        latents = draw_normal(generators, masked.shape[1:], masked)
        self.host.scheduler.set_timesteps(self.steps)
        timesteps = self.host.scheduler.timesteps.tolist()
        abar = self.host.alphas_cumprod.to(masked)
        for index, step in enumerate(timesteps):
            noise = self.host.predict(latents, step, masked, self.mask)
            if self.guidance_scale != 1:
                plain = self.host.predict(latents, step, masked, self.mask, condition=self.host.empty)
                noise = plain + self.guidance_scale * (noise - plain)
            clean = (latents - (1 - abar[step]).sqrt() * noise) / abar[step].sqrt()
            before = abar[timesteps[index + 1]] if index + 1 < len(timesteps) else abar.new_ones(())
            latents = before.sqrt() * clean + (1 - before).sqrt() * noise
        value = (2 * self.host.decode(latents) - 1).flatten(1).norm(dim=1)
        return torch.autograd.grad(value.sum(), images)[0], value


def _spread(host: Host, images: Tensor, generators: Sequence[torch.Generator], sample: bool) -> Tensor | None:
    return draw_normal(generators, host.latent_shape(images), images) if sample else None


def _latents(host: Host, images: Tensor, generators: Sequence[torch.Generator], sample: bool) -> Tensor:
    return host.encode(images, _spread(host, images, generators, sample))


def _level(host: Host, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    steps = draw_steps(generators, 0, len(host.alphas_cumprod), images)
    return steps, draw_normal(generators, host.latent_shape(images), images)
