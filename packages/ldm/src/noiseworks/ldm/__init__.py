"""Latent diffusion (arXiv 2112.10752): first stages, diffusion in their latents, every conditioning kind."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.ldm.autoencoding import (
        AutoencoderOptions,
        LossOptions,
        make_autoencoder,
        train_autoencoder,
    )
    from noiseworks.ldm.conditioning import ClassConditioner, LayoutConditioner, TextConditioner
    from noiseworks.ldm.conversion import import_ldm
    from noiseworks.ldm.diffusion import LatentDiffusionTrainer
    from noiseworks.ldm.discriminator import PatchDiscriminator
    from noiseworks.ldm.evaluation import evaluate_autoencoder, score_autoencoder
    from noiseworks.ldm.export import export_diffusers
    from noiseworks.ldm.first_stage import CodebookOptions, FirstStageTrainer
    from noiseworks.ldm.loader import ResumableLoader, TensorTable
    from noiseworks.ldm.losses import PerceptualAdversarialLoss, SegmentationLoss
    from noiseworks.ldm.model import LatentModel
    from noiseworks.ldm.objective import make_scheduler
    from noiseworks.ldm.perceptual import FeatureNet, Perceptual, train_features
    from noiseworks.ldm.pipelines import load_model
    from noiseworks.ldm.retrieval import NeighborConditioner, NeighborIndex
    from noiseworks.ldm.runs import RunOptions
    from noiseworks.ldm.samplers import SampleSettings
    from noiseworks.ldm.sampling import sample
    from noiseworks.ldm.scaling import LatentCache, cache_latents, estimate_scale
    from noiseworks.ldm.spatial_conditioning import LowResConditioner, MaskConditioner, SemanticConditioner
    from noiseworks.ldm.tiling import Tiles
    from noiseworks.ldm.training import DiffusionOptions, train

_HOME = {
    "AutoencoderOptions": "autoencoding",
    "ClassConditioner": "conditioning",
    "CodebookOptions": "first_stage",
    "DiffusionOptions": "training",
    "FeatureNet": "perceptual",
    "FirstStageTrainer": "first_stage",
    "LatentCache": "scaling",
    "LatentDiffusionTrainer": "diffusion",
    "LatentModel": "model",
    "LayoutConditioner": "conditioning",
    "LossOptions": "autoencoding",
    "LowResConditioner": "spatial_conditioning",
    "MaskConditioner": "spatial_conditioning",
    "NeighborConditioner": "retrieval",
    "NeighborIndex": "retrieval",
    "PatchDiscriminator": "discriminator",
    "Perceptual": "perceptual",
    "PerceptualAdversarialLoss": "losses",
    "ResumableLoader": "loader",
    "RunOptions": "runs",
    "SampleSettings": "samplers",
    "SegmentationLoss": "losses",
    "SemanticConditioner": "spatial_conditioning",
    "TensorTable": "loader",
    "TextConditioner": "conditioning",
    "Tiles": "tiling",
    "cache_latents": "scaling",
    "estimate_scale": "scaling",
    "evaluate_autoencoder": "evaluation",
    "export_diffusers": "export",
    "import_ldm": "conversion",
    "load_model": "pipelines",
    "make_autoencoder": "autoencoding",
    "make_scheduler": "objective",
    "sample": "sampling",
    "score_autoencoder": "evaluation",
    "train": "training",
    "train_autoencoder": "autoencoding",
    "train_features": "perceptual",
}

__all__ = [
    "AutoencoderOptions",
    "ClassConditioner",
    "CodebookOptions",
    "DiffusionOptions",
    "FeatureNet",
    "FirstStageTrainer",
    "LatentCache",
    "LatentDiffusionTrainer",
    "LatentModel",
    "LayoutConditioner",
    "LossOptions",
    "LowResConditioner",
    "MaskConditioner",
    "NeighborConditioner",
    "NeighborIndex",
    "PatchDiscriminator",
    "Perceptual",
    "PerceptualAdversarialLoss",
    "ResumableLoader",
    "RunOptions",
    "SampleSettings",
    "SegmentationLoss",
    "SemanticConditioner",
    "TensorTable",
    "TextConditioner",
    "Tiles",
    "cache_latents",
    "estimate_scale",
    "evaluate_autoencoder",
    "export_diffusers",
    "import_ldm",
    "load_model",
    "make_autoencoder",
    "make_scheduler",
    "sample",
    "score_autoencoder",
    "train",
    "train_autoencoder",
    "train_features",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
