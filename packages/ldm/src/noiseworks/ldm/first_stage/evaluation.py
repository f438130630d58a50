"""What `eval-ae` measures: PSNR, SSIM, Fréchet distance in trained features, codebook use."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import load_autoencoder
from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
from noiseworks.ldm.data import load_images
from noiseworks.ldm.first_stage import codebook as vq
from noiseworks.ldm.first_stage.perceptual import FeatureNet, train_features
from noiseworks.ldm.options import Evaluation, Images
from torch import Tensor, nn
from torch.utils.data import Dataset


@dataclass(frozen=True)
class AutoencoderScores:
    """How well an autoencoder reconstructs images, from mean latents.

    Attributes:
        images: Number of images.
        psnr: Mean peak signal-to-noise ratio in dB.
        ssim: Mean structural similarity, at most 1.
        fd_featnet: Fréchet distance of images and reconstructions in the features of a net trained on these
            images. Not comparable with FID, nor between data sets.
        feature_accuracy: The net's accuracy in its training task, to judge its features by.
        codebook_usage: Share of codes used, or None for KL.
        perplexity: exp of the entropy of code use, or None for KL.
    """

    images: int
    psnr: float
    ssim: float
    fd_featnet: float
    feature_accuracy: float
    codebook_usage: float | None = None
    perplexity: float | None = None


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂) - 2 tr((Σ₁Σ₂)^½) of two sets of features, in float64.

    The trace of the root is the sum of the square roots of the eigenvalues of Σ₁Σ₂, which are real and not
    negative but for rounding. Covariances are the unbiased ones.

    Args:
        first: [N, d], N > d.
        second: [M, d], M > d.

    Raises:
        InputError: When there are not more samples than dimensions.
    """
    a, b = (features.detach().cpu().double().numpy() for features in (first, second))
    dimensions = a.shape[1]
    if min(len(a), len(b)) <= dimensions:
        raise InputError(
            f"a Fréchet distance in {dimensions} dimensions needs more than {dimensions} samples a side, "
            f"got {len(a)} and {len(b)}; give more images"
        )
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    covariance_a, covariance_b = np.atleast_2d(covariance_a), np.atleast_2d(covariance_b)
    eigenvalues = np.linalg.eigvals(covariance_a @ covariance_b).real.clip(min=0)
    mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(mean + np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(eigenvalues).sum())


@torch.no_grad()
def reconstruct(vae: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return reconstructions [B, C, H, W] from mean latents, and the code indices of a VQ model or None."""
    encoded = vae.encode(images)
    if not hasattr(encoded, "latents"):
        return vae.decode(encoded.latent_dist.mode()).sample, None
    latents, table = encoded.latents, vae.quantize.embedding.weight
    codes = vq.nearest_codes(latents.movedim(1, -1).flatten(0, -2), table)
    quantised = F.embedding(codes, table).view(*latents.shape[:1], *latents.shape[2:], -1).movedim(-1, 1)
    return vae.decode(quantised, force_not_quantize=True).sample, codes


def score_autoencoder(
    vae: nn.Module, dataset: Dataset, features: FeatureNet, accuracy: float, batch_size: int = 32
) -> AutoencoderScores:
    """Measure an autoencoder batch by batch; images are not kept.

    Args:
        vae: `AutoencoderKL` or `VQModel`, in eval mode.
        dataset: Items with `image` [C, H, W] in [-1, 1].
        features: The net of the Fréchet distance.
        accuracy: Its accuracy, reported beside the distance.
        batch_size: Images at once.
    """
    reference = next(vae.parameters())
    features = features.to(reference.device)
    counts = None
    if hasattr(vae, "quantize"):
        counts = torch.zeros(len(vae.quantize.embedding.weight), device=reference.device)
    psnr, ssim, real, fake = [], [], [], []
    with torch.inference_mode():
        for start in range(0, len(dataset), batch_size):
            rows = range(start, min(start + batch_size, len(dataset)))
            images = torch.stack([dataset[row]["image"] for row in rows]).to(reference)
            made, codes = reconstruct(vae, images)
            made = made.float().clamp(-1, 1)
            images = images.float()
            psnr.append(peak_signal_to_noise(images, made))
            ssim.append(structural_similarity(images, made))
            real.append(features.embed(images))
            fake.append(features.embed(made))
            if codes is not None:
                counts += torch.bincount(codes, minlength=len(counts))
    return AutoencoderScores(
        images=len(dataset),
        psnr=float(torch.cat(psnr).mean()),
        ssim=float(torch.cat(ssim).mean()),
        fd_featnet=frechet_distance(torch.cat(real), torch.cat(fake)),
        feature_accuracy=accuracy,
        codebook_usage=None if counts is None else float(vq.usage(counts)),
        perplexity=None if counts is None else float(vq.perplexity(counts)),
    )


def evaluate(model: str, given: Images, evaluation: Evaluation, device: torch.device) -> AutoencoderScores:
    """Measure an autoencoder; see the command `eval-ae`.

    Raises:
        InputError: When model or data do not fit, or there are too few images for the distance (65).
    """
    dataset = load_images(given)
    count = min(evaluation.limit or len(dataset), len(dataset))
    if count <= 64:
        raise InputError(
            f"the Fréchet distance needs more than 64 images, {given.data} holds {count}; give more images"
        )
    vae = load_autoencoder(model).to(device)
    images = torch.stack([dataset[row]["image"] for row in range(min(count, 1024))])
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if any(side % factor for side in images.shape[-2:]):
        side = images.shape[-1]
        raise InputError(
            f"the image size {side} is not a multiple of the model's f = {factor}; give another --size"
        )
    features, accuracy = train_features(images, steps=evaluation.feature_steps, seed=evaluation.seed)
    return score_autoencoder(
        vae, torch.utils.data.Subset(dataset, range(count)), features, accuracy, evaluation.batch_size
    )
