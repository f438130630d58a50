"""The first-stage loss of section 3.1: reconstruction, perceptual distance, regulariser, patch adversary."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.perceptual import Perceptual
from torch import Tensor, nn

KINDS = ("kl", "vq")
DISCRIMINATOR_LOSSES = ("hinge", "vanilla")
_DISCRIMINATOR_WEIGHT = {"kl": 0.5, "vq": 0.75}
_DISCRIMINATOR_START = {"kl": 50_001, "vq": 0}
LARGEST_ADAPTIVE_WEIGHT = 1e4


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² - 1 - log σ²), summed over channels and positions.

    Args:
        mean: μ, [B, C, h, w].
        logvar: log σ², same shape; clamped to [-30, 20] before the exponential.

    Returns:
        [B].
    """
    logvar = logvar.clamp(-30.0, 20.0)
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(dim=1)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½ (mean relu(1 - D(x)) + mean relu(1 + D(x̂))) of logits of any shape."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def vanilla_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ½ (mean softplus(-D(x)) + mean softplus(D(x̂))) of logits of any shape."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(nll_norm: Tensor, adversarial_norm: Tensor, disc_weight: float) -> Tensor:
    """Return λ = clamp(‖∂nll/∂W‖ / (‖∂L_g/∂W‖ + 1e-4), 0, 1e4) · w_d; the clamp comes before the factor."""
    return (nll_norm / (adversarial_norm + 1e-4)).clamp(0.0, LARGEST_ADAPTIVE_WEIGHT) * disc_weight


@contextmanager
def recorded_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the input of `layer` at each of its calls inside the block."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    try:
        yield found
    finally:
        handle.remove()


def last_layer_gradient(layer: nn.Conv2d, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Return the gradient of the last convolution's weight, given that of its output, in at least float32.

    The weight gradient of a convolution needs its input and the gradient of its output only, so no second
    backward pass through the loss networks is made.

    Args:
        layer: The decoder's last convolution.
        inputs: Its input [B, C, H, W].
        output_gradient: ∂L/∂x̂ [B, 3, H, W].
    """
    dtype = torch.promote_types(torch.promote_types(inputs.dtype, output_gradient.dtype), torch.float32)
    with torch.autocast(inputs.device.type, enabled=False):
        return torch.nn.grad.conv2d_weight(
            inputs.to(dtype), layer.weight.shape, output_gradient.to(dtype), layer.stride, layer.padding
        )


@dataclass(frozen=True)
class GeneratorLoss:
    """What the autoencoder's step needs.

    Attributes:
        value: The loss, a scalar without gradient.
        image_gradient: Its gradient with respect to the reconstructions, [B, C, H, W]. The regulariser's part
            does not go through the image and is added by the caller.
        logvar_gradient: Its gradient with respect to the scalar log-variance s, or None.
        fake_logits: D(x̂), still differentiable with respect to D, or None when the adversary is off.
        log: Named parts for logs.
    """

    value: Tensor
    image_gradient: Tensor
    logvar_gradient: Tensor | None
    fake_logits: Tensor | None
    log: dict[str, Tensor]


class PerceptualAdversarialLoss(nn.Module):
    """The first stage's loss, for KL and VQ autoencoders.

    Per element ρ = |x - x̂| + w_p P(x, x̂). KL: nll = Σ (ρ / exp(s) + s) / B, a sum over channels and pixels.
    VQ: nll = mean ρ. The autoencoder minimises nll + regulariser + λ a L_g with L_g = -mean D(x̂), the
    discriminator a times the hinge (or vanilla) loss; a = 0 before `disc_start` batches and `disc_factor`
    afterwards.

    Args:
        kind: `"kl"` or `"vq"`. The two scale nll differently (sum against mean), by the number of elements of
            an image, so their weights are not interchangeable.
        perceptual: P; None means no perceptual term.
        disc: D; None means no adversarial term.
        perceptual_weight: w_p.
        kl_weight: w_KL, of the KL divergence summed over a latent.
        codebook_weight: w_c, of the codebook loss.
        disc_weight: w_d; by default 0.5 (KL) or 0.75 (VQ).
        disc_factor: a after `disc_start`.
        disc_start: Batches without the adversary; by default 50,001 (KL) or 0 (VQ).
        disc_loss: `"hinge"` or `"vanilla"`.
        pixel_loss: `"l1"`, or `"l2"` for squared differences.
        learn_logvar: Whether s is learned. In the authors' code it is declared so but is in no optimiser.
        logvar_init: Initial s.

    Raises:
        InputError: When an option is outside its range.
    """

    def __init__(
        self,
        kind: str = "kl",
        perceptual: Perceptual | None = None,
        disc: PatchDiscriminator | None = None,
        *,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        codebook_weight: float = 1.0,
        disc_weight: float | None = None,
        disc_factor: float = 1.0,
        disc_start: int | None = None,
        disc_loss: str = "hinge",
        pixel_loss: str = "l1",
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_choice("disc_loss", disc_loss, DISCRIMINATOR_LOSSES)
        check_choice("pixel_loss", pixel_loss, ("l1", "l2"))
        disc_weight = _DISCRIMINATOR_WEIGHT[kind] if disc_weight is None else disc_weight
        disc_start = _DISCRIMINATOR_START[kind] if disc_start is None else disc_start
        check_number("disc_start", disc_start, low=0, integer=True)
        for name, value in {
            "perceptual_weight": perceptual_weight,
            "kl_weight": kl_weight,
            "codebook_weight": codebook_weight,
            "disc_weight": disc_weight,
            "disc_factor": disc_factor,
        }.items():
            check_number(name, value, low=0)
        if learn_logvar and kind == "vq":
            raise InputError('learn_logvar belongs to kind="kl": the VQ loss has no log-variance')
        self.kind, self.disc_loss, self.pixel_loss = kind, disc_loss, pixel_loss
        self.perceptual = perceptual if perceptual is not None else Perceptual("none")
        self.disc = disc
        self.perceptual_weight, self.kl_weight, self.codebook_weight = (
            perceptual_weight,
            kl_weight,
            codebook_weight,
        )
        self.disc_weight, self.disc_factor, self.disc_start = disc_weight, disc_factor, disc_start
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)), requires_grad=learn_logvar)

    def adversarial_factor(self, step: int) -> float:
        """Return a: 0 while `step` (batches done) is below `disc_start` or without a discriminator."""
        return self.disc_factor if self.disc is not None and step >= self.disc_start else 0.0

    def warn_if_never_adversarial(self, batches: float) -> None:
        """Warn when a run of so many batches ends before the discriminator starts."""
        if self.disc is not None and self.disc_weight > 0 and 0 <= batches <= self.disc_start:
            warnings.warn(
                f"disc_start={self.disc_start} is not reached in {batches:g} batches: no adversarial term",
                stacklevel=2,
            )

    def reconstruction(
        self, images: Tensor, reconstructions: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return nll, a scalar.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            reconstructions: x̂, same shape.
            weights: One weight an image, [B], or None.
        """
        difference = images - reconstructions
        rho = difference.abs() if self.pixel_loss == "l1" else difference.square()
        if self.perceptual_weight > 0 and self.perceptual.backend != "none":
            rho = rho + self.perceptual_weight * self.perceptual(images, reconstructions)
        if self.kind == "kl":
            rho = rho / self.logvar.exp() + self.logvar
        if weights is not None:
            rho = rho * weights.view(-1, 1, 1, 1)
        return rho.sum() / len(images) if self.kind == "kl" else rho.mean()

    def generator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        last_layer: nn.Conv2d,
        last_input: Tensor,
        step: int,
        condition: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> GeneratorLoss:
        """Return nll + λ a L_g and its exact gradient with respect to the reconstructions.

        The two image gradients g1 = ∂nll/∂x̂ and g2 = ∂L_g/∂x̂ are computed once. Both norms of λ follow from
        them by one weight gradient of the last convolution each, and the decoder is walked once, with g1 + λ
        a g2; the straightforward form walks perceptual net and discriminator twice. Without the adversary (a
        = 0) D is not evaluated.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            reconstructions: x̂, same shape; taken as a value, its history is not walked.
            last_layer: The decoder's last convolution, whose output x̂ is.
            last_input: Input of that convolution, of `recorded_input`.
            step: Batches done.
            condition: Map for a conditional discriminator, [B, K, H, W].
            weights: One weight an image for nll, [B], or None.
        """
        fake = reconstructions.detach().float().requires_grad_()
        images = images.float()
        inputs = [fake, self.logvar] if self.logvar.requires_grad else [fake]
        # Half precision would underflow in the image gradients; bfloat16 has float32's range.
        half = (
            torch.is_autocast_enabled(fake.device.type)
            and torch.get_autocast_dtype(fake.device.type) == torch.half
        )
        with torch.autocast(fake.device.type, dtype=torch.bfloat16, enabled=_autocast_on(fake) and not half):
            nll = self.reconstruction(images, fake, weights)
            g1, *logvar_gradient = torch.autograd.grad(nll, inputs)
            log = {"nll": nll.detach()}
            factor, logits = self.adversarial_factor(step), None
            value, gradient = nll.detach(), g1
            if factor > 0:
                logits = self.disc(fake, condition)
                adversarial = -logits.float().mean()
                (g2,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
                norms = average_norms(
                    last_layer_gradient(last_layer, last_input, g1),
                    last_layer_gradient(last_layer, last_input, g2),
                )
                weight = adaptive_weight(*norms, self.disc_weight)
                gradient = g1 + weight * factor * g2
                value = value + weight * factor * adversarial.detach()
                log |= {"adversarial": adversarial.detach(), "adaptive_weight": weight}
        return GeneratorLoss(value, gradient, logvar_gradient[0] if logvar_gradient else None, logits, log)

    def discriminator(
        self, images: Tensor, fake_logits: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a · L_D, differentiable with respect to D, and its parts.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            fake_logits: D(x̂) of `GeneratorLoss`, whose forward pass is used again: D has not changed since.
            condition: Map for a conditional discriminator.
        """
        real = self.disc(images.float(), condition).float()
        fake = fake_logits.float()
        loss = hinge_discriminator_loss if self.disc_loss == "hinge" else vanilla_discriminator_loss
        value = self.disc_factor * loss(real, fake)
        parts = {
            "disc": value.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        return value, parts

    def regularisation(self, latent_loss: Tensor) -> Tensor:
        """Return the weighted regulariser: w_KL times the mean of KL_b [B] or w_c times the codebook loss."""
        weight = self.kl_weight if self.kind == "kl" else self.codebook_weight
        return weight * latent_loss.mean()


class SegmentationLoss(PerceptualAdversarialLoss):
    """Loss of an autoencoder of segmentation maps: cross-entropy of one-hot maps, and the codebook loss.

    The maps [B, K, H, W] hold 0 and 1; the autoencoder's outputs are logits. There is no adversary and no
    perceptual term. Source: the authors' code for segmentation first stages.

    Args:
        kind: `"vq"` or `"kl"`.
        kl_weight: w_KL.
        codebook_weight: w_c.
    """

    def __init__(self, kind: str = "vq", *, kl_weight: float = 1e-6, codebook_weight: float = 1.0) -> None:
        super().__init__(kind, kl_weight=kl_weight, codebook_weight=codebook_weight)

    def reconstruction(
        self, images: Tensor, reconstructions: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean binary cross-entropy of logits [B, K, H, W] against maps of 0 and 1."""
        entropy = F.binary_cross_entropy_with_logits(reconstructions, images, reduction="none")
        return (entropy if weights is None else entropy * weights.view(-1, 1, 1, 1)).mean()


def average_norms(*gradients: Tensor) -> list[Tensor]:
    """Return the Euclidean norms of gradients, averaged over the processes first where there are several.

    So λ is the same on every process, and the same as that of one process with the whole batch.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        stacked = torch.stack(gradients)
        torch.distributed.all_reduce(stacked)
        gradients = tuple(stacked / torch.distributed.get_world_size())
    return [gradient.norm() for gradient in gradients]


def _autocast_on(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
