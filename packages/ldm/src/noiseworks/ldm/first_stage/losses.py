"""The first-stage loss of section 3.1: reconstruction, perceptual distance, regulariser, patch adversary."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.perceptual import Perceptual
from torch import Tensor, nn

KINDS = ("kl", "vq")
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
        fake_logits: D(x̂), still differentiable with respect to D, or None when the adversary is off.
        log: Named parts for logs.
    """

    value: Tensor
    image_gradient: Tensor
    fake_logits: Tensor | None
    log: dict[str, Tensor]


class PerceptualAdversarialLoss(nn.Module):
    """The first stage's loss, for KL and VQ autoencoders.

    Per element ρ = |x - x̂| + w_p P(x, x̂). KL: nll = Σ ρ / B, a sum over channels and pixels.
    VQ: nll = mean ρ. The autoencoder minimises nll + regulariser + λ a L_g with L_g = -mean D(x̂), the
    discriminator a times the hinge loss; a = 0 before `disc_start` batches and 1 afterwards.

    Args:
        kind: `"kl"` or `"vq"`. The two scale nll differently (sum against mean), by the number of elements of
            an image, so their weights are not interchangeable.
        perceptual: P; None means no perceptual term.
        disc: D; None means no adversarial term.
        perceptual_weight: w_p.
        kl_weight: w_KL, of the KL divergence summed over a latent.
        codebook_weight: w_c, of the codebook loss.
        disc_weight: w_d; by default 0.5 (KL) or 0.75 (VQ).
        disc_start: Batches without the adversary; by default 50,001 (KL) or 0 (VQ).

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
        disc_start: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        disc_weight = _DISCRIMINATOR_WEIGHT[kind] if disc_weight is None else disc_weight
        disc_start = _DISCRIMINATOR_START[kind] if disc_start is None else disc_start
        check_number("disc_start", disc_start, low=0, integer=True)
        for name, value in {
            "perceptual_weight": perceptual_weight,
            "kl_weight": kl_weight,
            "codebook_weight": codebook_weight,
            "disc_weight": disc_weight,
        }.items():
            check_number(name, value, low=0)
        self.kind = kind
        self.perceptual = perceptual if perceptual is not None else Perceptual("none")
        self.disc = disc
        self.perceptual_weight, self.kl_weight, self.codebook_weight = (
            perceptual_weight,
            kl_weight,
            codebook_weight,
        )
        self.disc_weight, self.disc_start = disc_weight, disc_start

    def adversarial(self, step: int) -> bool:
        """Return whether a is 1: there is a discriminator and `step` (batches done) has reached `disc_start`."""
        return self.disc is not None and step >= self.disc_start

    def warn_if_never_adversarial(self, batches: float) -> None:
        """Warn when a run of so many batches ends before the discriminator starts."""
        if self.disc is not None and self.disc_weight > 0 and 0 <= batches <= self.disc_start:
            warnings.warn(
                f"disc_start={self.disc_start} is not reached in {batches:g} batches: no adversarial term",
                stacklevel=2,
            )

    def reconstruction(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return nll, a scalar.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            reconstructions: x̂, same shape.
        """
        rho = (images - reconstructions).abs()
        if self.perceptual_weight > 0 and self.perceptual.backend != "none":
            rho = rho + self.perceptual_weight * self.perceptual(images, reconstructions)
        return rho.sum() / len(images) if self.kind == "kl" else rho.mean()

    def generator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        last_layer: nn.Conv2d,
        last_input: Tensor,
        step: int,
    ) -> GeneratorLoss:
        """Return nll + λ a L_g and its exact gradient with respect to the reconstructions.

        The two image gradients g1 = ∂nll/∂x̂ and g2 = ∂L_g/∂x̂ are computed once. Both norms of λ follow from
        them by one weight gradient of the last convolution each, and the decoder is walked once, with g1 + λ g2;
        the straightforward form walks perceptual net and discriminator twice. Without the adversary (a
        = 0) D is not evaluated.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            reconstructions: x̂, same shape; taken as a value, its history is not walked.
            last_layer: The decoder's last convolution, whose output x̂ is.
            last_input: Input of that convolution, of `recorded_input`.
            step: Batches done.
        """
        fake = reconstructions.detach().float().requires_grad_()
        images = images.float()
        # Half precision would underflow in the image gradients; bfloat16 has float32's range.
        half = (
            torch.is_autocast_enabled(fake.device.type)
            and torch.get_autocast_dtype(fake.device.type) == torch.half
        )
        with torch.autocast(fake.device.type, dtype=torch.bfloat16, enabled=_autocast_on(fake) and not half):
            nll = self.reconstruction(images, fake)
            (g1,) = torch.autograd.grad(nll, fake)
            log = {"nll": nll.detach()}
            value, gradient, logits = nll.detach(), g1, None
            if self.adversarial(step):
                logits = self.disc(fake)
                adversarial = -logits.float().mean()
                (g2,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
                norms = average_norms(
                    last_layer_gradient(last_layer, last_input, g1),
                    last_layer_gradient(last_layer, last_input, g2),
                )
                weight = adaptive_weight(*norms, self.disc_weight)
                gradient = g1 + weight * g2
                value = value + weight * adversarial.detach()
                log |= {"adversarial": adversarial.detach(), "adaptive_weight": weight}
        return GeneratorLoss(value, gradient, logits, log)

    def discriminator(self, images: Tensor, fake_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_D, differentiable with respect to D, and its parts.

        Args:
            images: x, [B, C, H, W] in [-1, 1].
            fake_logits: D(x̂) of `GeneratorLoss`, whose forward pass is used again: D has not changed since.
        """
        real, fake = self.disc(images.float()).float(), fake_logits.float()
        value = hinge_discriminator_loss(real, fake)
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
