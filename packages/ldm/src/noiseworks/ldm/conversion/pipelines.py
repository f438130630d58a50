"""Pipelines for the conditions that diffusers has none for, with `DiffusionPipeline`'s saving and loading.

Each holds a U-Net, a first stage, a scheduler and, where it has weights, a conditioner:

    pipeline = LayoutToImagePipeline.from_pretrained("runs/layout/pipeline")
    settings = SampleSettings(guidance_scale=3.0)
    pipeline([[(2, 0.1, 0.1, 0.5, 0.5)]], settings).images[0].save("scene.png")
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model, without_loading_bars
from noiseworks.ldm.conditioning.conditioners import Box, Conditioner, TextConditioner
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner
from noiseworks.ldm.data import to_uint8
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.options import SampleSettings
from torch import Tensor, nn


class LatentDiffusionPipeline(DiffusionPipeline):
    """Base of the pipelines below.

    Args:
        unet: The denoiser.
        vae: The first stage; its `config.scaling_factor` is the latents' scale factor.
        scheduler: Read for ᾱ and `prediction_type`.
        conditioner: Where the task's conditioner has weights.
    """

    model_cpu_offload_seq = "conditioner->unet->vae"
    _optional_components: ClassVar[list[str]] = ["conditioner"]

    def __init__(
        self, unet: nn.Module, vae: nn.Module, scheduler: Any, conditioner: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, conditioner=conditioner)

    def latent_model(self) -> LatentModel:
        """Return what `noiseworks.ldm.diffusion.sampling.sample` takes."""
        return LatentModel(
            self.unet, self.vae, self.scheduler, self.conditioner, float(self.vae.config.scaling_factor)
        )

    def run(
        self,
        batch: Mapping[str, Any] | None,
        settings: SampleSettings | None,
        size: Sequence[int] = (),
    ) -> ImagePipelineOutput:
        """Return the images of a batch of conditions, of a size [H, W] if one is given, as PIL images."""
        settings = settings or SampleSettings()
        if size:
            settings = replace(settings, height=size[0], width=size[1])
        samples = sample(self.latent_model(), batch, settings)
        return ImagePipelineOutput(images=self.numpy_to_pil(to_uint8(samples.images) / 255.0))


class ClassToImagePipeline(LatentDiffusionPipeline):
    """Images of classes, by a token (`kind="crossattn"`) or the time embedding (`kind="adm"`)."""

    def __call__(self, labels: Tensor, settings: SampleSettings | None = None) -> ImagePipelineOutput:
        """Sample an image per label, int64 `[B]`."""
        return self.run({"label": labels}, settings)


class LayoutToImagePipeline(LatentDiffusionPipeline):
    """Images of layouts: lists of boxes (class, x0, y0, x1, y1) with corners in [0, 1]."""

    def __call__(
        self, layouts: Sequence[Sequence[Box]], settings: SampleSettings | None = None
    ) -> ImagePipelineOutput:
        """Sample an image per layout."""
        return self.run({"layout": list(layouts)}, settings)


class SemanticToImagePipeline(LatentDiffusionPipeline):
    """Images of maps of classes, at the maps' own size."""

    def __call__(self, segmentation: Tensor, settings: SampleSettings | None = None) -> ImagePipelineOutput:
        """Sample an image per map, int64 `[B, H, W]`."""
        return self.run({"segmentation": segmentation}, settings, segmentation.shape[-2:])


class UpscalePipeline(LatentDiffusionPipeline):
    """Images f times as large, for first stages that `LDMSuperResolutionPipeline` cannot hold."""

    def latent_model(self) -> LatentModel:
        """Return the model with its parameter-free conditioner."""
        model = super().latent_model()
        return LatentModel(model.unet, model.vae, model.scheduler, LowResConditioner(), model.scale_factor)

    def __call__(self, images: Tensor, settings: SampleSettings | None = None) -> ImagePipelineOutput:
        """Enlarge images `[B, 3, h, w]` in [-1, 1]."""
        factor = self.latent_model().factor
        return self.run({"low_res": images}, settings, [side * factor for side in images.shape[-2:]])


class InpaintPipeline(LatentDiffusionPipeline):
    """Images with their hole filled; outside the hole the given pixels are kept."""

    def latent_model(self) -> LatentModel:
        """Return the model with its conditioner, which is the first stage itself."""
        model = super().latent_model()
        return LatentModel(
            model.unet, model.vae, model.scheduler, MaskConditioner(model.vae), model.scale_factor
        )

    def __call__(
        self, images: Tensor, mask: Tensor, settings: SampleSettings | None = None
    ) -> ImagePipelineOutput:
        """Fill images `[B, 3, H, W]` in [-1, 1] where the mask `[B, 1, H, W]` is above 0.5."""
        filled = fill(self.latent_model(), images, mask, settings)
        return ImagePipelineOutput(images=self.numpy_to_pil(to_uint8(filled) / 255.0))


def fill(model: LatentModel, images: Tensor, mask: Tensor, settings: SampleSettings | None = None) -> Tensor:
    """Return `(1 - mask) image + mask prediction`, `[B, 3, H, W]` in [-1, 1] (the paper's inpainting)."""
    sized = replace(settings or SampleSettings(), height=images.shape[-2], width=images.shape[-1])
    return keep_pixels(sample(model, {"image": images, "mask": mask}, sized).images, images, mask)


def keep_pixels(filled: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Return the given pixels where `mask` is at most 0.5, and the filled ones elsewhere."""
    return torch.where(mask > 0.5, filled.to(images.device), images)


OWN = {
    pipeline.__name__: pipeline
    for pipeline in (
        LatentDiffusionPipeline,
        ClassToImagePipeline,
        LayoutToImagePipeline,
        SemanticToImagePipeline,
        UpscalePipeline,
        InpaintPipeline,
    )
}
HOSTS = (
    "StableDiffusionPipeline",
    "LDMPipeline",
    "LDMTextToImagePipeline",
    "LDMSuperResolutionPipeline",
)


def load_model(name: str | Path, *, truncate: bool = False) -> LatentModel:
    """Return the model in a pipeline's directory, of this package or of diffusers.

    Args:
        name: A directory, `testbed:<name>` or a hub id.
        truncate: Whether captions beyond the text encoder's limit are cut, not refused.

    Raises:
        ModelNotFoundError: When there is none.
        InputError: When it is a pipeline of another kind.
    """
    path = resolve_model(name)
    index = Path(path) / "model_index.json"
    if Path(path).is_dir() and not index.is_file():
        raise InputError(
            f"{path} holds no pipeline (model_index.json); name the folder that train or export wrote"
        )
    kind = (
        json.loads(index.read_text())["_class_name"]
        if index.is_file()
        else DiffusionPipeline.load_config(path)["_class_name"]
    )
    if kind not in (*OWN, *HOSTS):
        raise InputError(f"{name} is a {kind}; latent models are {', '.join((*OWN, *HOSTS))}")
    with without_loading_bars():
        pipeline = (OWN[kind] if kind in OWN else getattr(diffusers, kind)).from_pretrained(path)
    return pipeline.latent_model() if kind in OWN else from_host(pipeline, truncate=truncate)


def from_host(pipeline: DiffusionPipeline, *, truncate: bool = False) -> LatentModel:
    """Return the model inside one of the diffusers pipelines in `HOSTS`."""
    parts = pipeline.components
    vae = parts.get("vae", parts.get("vqvae"))
    conditioner: Conditioner | None = None
    encoder = parts.get("text_encoder", parts.get("bert"))
    if encoder is not None:
        conditioner = TextConditioner(encoder, parts["tokenizer"], trained=False, truncate=truncate)
    elif type(pipeline).__name__ == "LDMSuperResolutionPipeline":
        conditioner = LowResConditioner()
    # The super-resolution pipeline decodes without dividing by the factor.
    scale = 1.0 if isinstance(conditioner, LowResConditioner) else float(vae.config.scaling_factor)
    return LatentModel(parts["unet"].eval(), vae.eval(), parts["scheduler"], conditioner, scale)
