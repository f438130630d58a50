"""The loss: heavily masked noise-free samples and moderately masked noised ones in one batch."""

import torch
from noiseworks.core.schedules import TableSchedule, add_noise
from noiseworks.kits.backbones import drop_labels
from noiseworks.kits.backbones.masking import keep_count, masked_mean, random_masks, to_patches
from noiseworks.kits.training import Rows
from noiseworks.umd.model import UMD
from noiseworks.umd.options import Mixture
from torch import Tensor


def clean_loss(model: UMD, images: Tensor, rho0: float, own: Rows | None = None) -> Tensor:
    """Return L0, the squared error of the removed patches of noise-free images.

    Args:
        model: The network, which is told time 0 and no label.
        images: (B, C, H, W).
        rho0: Share of patches that is removed, above 0.
        own: Which of a batch's noise-free images these are, by default this process's.
    """
    patches, own = model.patches(images), own or Rows.of(len(images))
    places = model.config.places
    masks = random_masks(own.total, places, keep_count(places, rho0), device=images.device).of_rows(own)
    condition = model.condition(torch.zeros(1, dtype=torch.int64, device=images.device))
    tokens = model.run_decoder(model.run_encoder(patches, condition, masks), condition, masks)
    return masked_mean((model.to_x0(tokens) - patches).square(), masks.removed)


def noisy_loss(
    model: UMD,
    images: Tensor,
    labels: Tensor | None,
    rho: float,
    schedule: TableSchedule,
    own: Rows | None = None,
) -> Tensor:
    """Return L1: half the error of the noise in visible patches and half that of the clean image in removed ones.

    Without a mask both errors are taken everywhere.

    Args:
        model: The network, which is told t + 1.
        images: Clean images (B, C, H, W).
        labels: (B,), or None.
        rho: Share of patches that is removed.
        schedule: Noise levels of the timesteps t, which are drawn uniformly.
        own: Which of a batch's noised images these are, by default this process's.
    """
    own = own or Rows.of(len(images))
    t = own.draw(lambda rows: torch.randint(schedule.num_steps, (rows,), device=images.device))
    noise = own.noise_like(images)
    noised = model.patches(add_noise(images, noise, schedule.level(t)))
    places, patch = model.config.places, model.config.patch
    keep = keep_count(places, rho)
    masks = None
    if keep < places:
        masks = random_masks(own.total, places, keep, device=images.device).of_rows(own)
    clean, epsilon = model.predict(noised, t + 1, labels, masks)
    clean_error = (clean - to_patches(images, patch)).square()
    noise_error = (epsilon - to_patches(noise, patch)).square()
    if masks is None:
        return (noise_error.mean() + clean_error.mean()) / 2
    return (masked_mean(noise_error, ~masks.removed) + masked_mean(clean_error, masks.removed)) / 2


def mixture_loss(
    model: UMD,
    images: Tensor,
    labels: Tensor | None,
    mixture: Mixture,
    schedule: TableSchedule,
    label_drop: float = 0.0,
) -> dict[str, Tensor]:
    """Return `loss` = (1 - n0/B) L1 + (n0/B) L0, and the parts `clean` (L0) and `noisy` (L1) that there are.

    Of a batch of B images over all processes, n0 = int(B r0) are noise-free. They are spread evenly, so that every
    process has its share of them.

    Args:
        model: The network.
        images: (B, C, H, W) in [-1, 1].
        labels: (B,), or None for a model without labels.
        mixture: Shares and mask ratios.
        schedule: Noise levels.
        label_drop: Share of the labels that is left out.
    """
    (_, rho0, rho), every = mixture.values, Rows.of(len(images))
    noise_free = mixture.clean_rows(every.total)
    before = torch.arange(every.first, every.first + every.count + 1) * noise_free // every.total
    chosen, (first, last) = before.diff().bool().to(images.device), before[[0, -1]].tolist()
    clean = Rows(first, last - first, noise_free)
    noisy = Rows(every.first - first, every.count - clean.count, every.total - noise_free)
    found = {}
    if noisy.count:
        given = None
        if labels is not None:
            given = drop_labels(labels[~chosen], label_drop, model.null_label, own=noisy)
        found["noisy"] = noisy_loss(model, images[~chosen], given, rho, schedule, noisy)
    if clean.count:
        found["clean"] = clean_loss(model, images[chosen], rho0, clean)
    shares = {"noisy": noisy.count / every.count, "clean": clean.count / every.count}
    return found | {"loss": sum(shares[name] * value for name, value in found.items())}
