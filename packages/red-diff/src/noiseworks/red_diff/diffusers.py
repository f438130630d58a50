"""Diffusers pipelines as priors: pixels (DDPM, DDIM) and latents (Stable Diffusion)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.interop import from_scheduler
from noiseworks.core.params import guide
from noiseworks.core.schedules import TableSchedule
from noiseworks.kits.diffusers_hosts import UNCONDITIONAL, decode_latents, load_image_model
from noiseworks.red_diff.operators import Operator
from noiseworks.red_diff.priors import Prior
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LATENTS = ("StableDiffusionPipeline",)


def load_prior(
    name: str, device: "torch.device | str" = "cpu", dtype: torch.dtype | None = None
) -> "DiffusionPipeline":
    """Load the pipeline of a prior by a directory, a hub id or `testbed:<name>`.

    Args:
        name: Its name.
        device: Where it goes.
        dtype: Precision of the weights, by default float32.

    Raises:
        ModelNotFoundError: When it is not there or corrupt.
        UnsupportedHostError: When it is of another class.
    """
    return load_image_model(name, device, dtype or torch.float32, families=("sd",))


def prior_of(pipe: "DiffusionPipeline", prompt: str = "", guidance_scale: float = 1.0) -> Prior:
    """Return a pipeline's model as a prior: of pixels, or of latents for Stable Diffusion.

    Args:
        pipe: A DDPM or DDIM pipeline, or Stable Diffusion; it is not changed.
        prompt: What the image shows, for Stable Diffusion.
        guidance_scale: Above 1: classifier-free guidance towards the prompt.

    Raises:
        UnsupportedHostError: When it is another pipeline, or its schedule has no table of noise levels.
    """
    host = from_scheduler(pipe.scheduler)
    if not isinstance(host.schedule, TableSchedule):
        raise UnsupportedHostError("red-diff needs a model with a table of noise levels, not a flow")
    unet, name = pipe.unet, type(pipe).__name__
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if name in LATENTS:
        embeds = _embeddings(pipe, prompt, guidance_scale)

        def predict(x: Tensor, t: int) -> Tensor:
            rows = torch.cat([x] * len(embeds)).to(unet.dtype)
            text = embeds.repeat_interleave(len(x), 0)
            out = unet(rows, t, encoder_hidden_states=text).sample.to(x.dtype)
            return guide(*out.chunk(2), guidance_scale) if len(embeds) > 1 else out
    elif name in UNCONDITIONAL:

        def predict(x: Tensor, t: int) -> Tensor:
            return unet(x.to(unet.dtype), t).sample.to(x.dtype)
    else:
        raise UnsupportedHostError(
            f"red-diff works with {', '.join((*UNCONDITIONAL, *LATENTS))}, not with {name}"
        )
    return Prior(predict, host.schedule, (unet.config.in_channels, height, width), host.prediction_type)


@torch.no_grad()
def _embeddings(pipe: "DiffusionPipeline", prompt: str, guidance_scale: float) -> Tensor:
    """Return the text features, `[1, L, D]`, or those of the empty prompt and the prompt where there is guidance."""
    guided = guidance_scale > 1
    cond, uncond = pipe.encode_prompt(prompt, pipe.device, 1, guided)
    return torch.cat([uncond, cond]) if guided else cond


def image_shape(pipe: "DiffusionPipeline") -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a pipeline makes."""
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if type(pipe).__name__ in LATENTS:
        return 3, height * pipe.vae_scale_factor, width * pipe.vae_scale_factor
    return pipe.unet.config.in_channels, height, width


class Decoded(Operator):
    """A measurement of the decoded image, as a function of the latents; only the decoder is differentiated.

    Args:
        operator: The measurement of images.
        pipe: Stable Diffusion.
    """

    def __init__(self, operator: Operator, pipe: "DiffusionPipeline") -> None:
        size = pipe.unet.config.sample_size
        super().__init__((pipe.unet.config.in_channels, size, size), operator.measured_shape)
        self.operator, self.pipe = operator, pipe

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [-1, 1]; gradients pass."""
        return decode_latents(self.pipe, latents).mul(2).sub(1).to(latents.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the measurement of the decoded latents."""
        return self.operator.forward(self.decode(x))

    @torch.no_grad()
    def start(self, y: Tensor) -> Tensor:
        """Return the latents of the image that the measurement starts from."""
        vae = self.pipe.vae
        image = self.operator.start(y).clamp(-1, 1).to(vae.dtype)
        latents = vae.encode(image).latent_dist.mode()
        return ((latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor).to(y.dtype)


def on_host(operator: Operator, pipe: "DiffusionPipeline") -> Operator:
    """Return an operator as a pipeline's prior needs it: of pixels as it is, of latents behind the decoder."""
    return Decoded(operator, pipe) if type(pipe).__name__ in LATENTS else operator


def to_images(operator: Operator, x: Tensor) -> Tensor:
    """Return what was restored as images `[B, 3, H, W]` in [-1, 1], decoded where it is latents, clipped once."""
    with torch.no_grad():
        return (operator.decode(x) if isinstance(operator, Decoded) else x).clamp(-1, 1)


def check_size(images: Tensor, shape: Sequence[int]) -> None:
    """Refuse images of another size than the model's.

    Raises:
        InputError: Naming both.
    """
    if tuple(images.shape[1:]) != tuple(shape):
        raise InputError(
            f"the image is {images.shape[3]}x{images.shape[2]}, needed here: {shape[2]}x{shape[1]}; resize it first"
        )
