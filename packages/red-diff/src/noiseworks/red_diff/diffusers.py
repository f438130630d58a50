"""Diffusers pipelines as priors: pixels (DDPM, DDIM) and latents (Stable Diffusion, DiT)."""

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
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LATENTS = ("StableDiffusionPipeline", "DiTPipeline")
NO_CLASS = 1000  # of DiT, as its pipeline has it


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
    return load_image_model(name, device, dtype or torch.float32, families=("sd", "dit"))


def prior_of(pipe: "DiffusionPipeline", prompt: str = "", guidance_scale: float = 1.0) -> Prior:
    """Return a pipeline's model as a prior: of pixels, or of latents for Stable Diffusion and DiT.

    Args:
        pipe: A DDPM or DDIM pipeline, Stable Diffusion or DiT; it is not changed.
        prompt: What the image shows, for Stable Diffusion; the number of a class or nothing for DiT.
        guidance_scale: Above 1: classifier-free guidance towards the prompt.

    Raises:
        UnsupportedHostError: When it is another pipeline, or its schedule has no table of noise levels.
        InputError: When DiT is given a text.
    """
    host = from_scheduler(pipe.scheduler)
    if not isinstance(host.schedule, TableSchedule):
        raise UnsupportedHostError("red-diff needs a model with a table of noise levels, not a flow")
    name = type(pipe).__name__
    if name in LATENTS:
        model = _model(pipe)
        conditions = _conditions(pipe, prompt, guidance_scale)

        def predict(x: Tensor, t: int) -> Tensor:
            rows = torch.cat([x] * len(conditions)).to(model.dtype)
            given = conditions.repeat_interleave(len(x), 0)
            if name == "DiTPipeline":
                called = {"timestep": torch.full((len(rows),), t, device=x.device), "class_labels": given}
            else:
                called = {"timestep": t, "encoder_hidden_states": given}
            out = model(rows, **called).sample.to(x.dtype)
            return guide(*out.chunk(2), guidance_scale) if len(conditions) > 1 else out
    elif name in UNCONDITIONAL:

        def predict(x: Tensor, t: int) -> Tensor:
            return pipe.unet(x.to(pipe.unet.dtype), t).sample.to(x.dtype)
    else:
        raise UnsupportedHostError(
            f"red-diff works with {', '.join((*UNCONDITIONAL, *LATENTS))}, not with {name}"
        )
    return Prior(predict, host.schedule, _denoised_shape(pipe), host.prediction_type)


def _model(pipe: "DiffusionPipeline") -> nn.Module:
    return pipe.transformer if type(pipe).__name__ == "DiTPipeline" else pipe.unet


def _denoised_shape(pipe: "DiffusionPipeline") -> tuple[int, int, int]:
    config = _model(pipe).config
    size = config.sample_size
    return (config.in_channels, size, size) if isinstance(size, int) else (config.in_channels, *size)


@torch.no_grad()
def _conditions(pipe: "DiffusionPipeline", prompt: str, guidance_scale: float) -> Tensor:
    """Return the text features, `[1, L, D]`, or the label `[1]`; the empty one stands before it where it guides."""
    guided = guidance_scale > 1
    if type(pipe).__name__ == "DiTPipeline":
        if prompt and not (prompt.isdecimal() and int(prompt) < NO_CLASS):
            raise InputError(
                f"DiT takes the number of a class, 0 to {NO_CLASS - 1}, as its prompt, got {prompt!r}"
            )
        labels = [int(prompt) if prompt else NO_CLASS]
        return torch.tensor([NO_CLASS, *labels] if guided else labels, device=pipe.device)
    cond, uncond = pipe.encode_prompt(prompt, pipe.device, 1, guided)
    return torch.cat([uncond, cond]) if guided else cond


def image_shape(pipe: "DiffusionPipeline") -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a pipeline makes."""
    channels, height, width = _denoised_shape(pipe)
    if type(pipe).__name__ in LATENTS:
        factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        return 3, height * factor, width * factor
    return channels, height, width


class Decoded(Operator):
    """A measurement of the decoded image, as a function of the latents; only the decoder is differentiated.

    Args:
        operator: The measurement of images.
        pipe: Stable Diffusion or DiT.
    """

    def __init__(self, operator: Operator, pipe: "DiffusionPipeline") -> None:
        super().__init__(_denoised_shape(pipe), operator.measured_shape)
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
