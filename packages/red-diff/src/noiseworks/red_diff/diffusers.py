"""Diffusers pipelines as priors: pixels (DDPM, DDIM) and latents (Stable Diffusion, PixArt, DiT)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.interop import from_scheduler
from noiseworks.core.params import guide
from noiseworks.core.schedules import TableSchedule, table_schedule
from noiseworks.kits.diffusers_hosts import (
    UNCONDITIONAL,
    Sampling,
    decode_latents,
    denoiser_of,
    encode_images,
    layout_of,
    load_image_model,
    prediction_of,
    record_step,
    take_rows,
)
from noiseworks.kits.diffusers_hosts.drawing import call_arguments
from noiseworks.red_diff.operators import Operator
from noiseworks.red_diff.priors import Prior
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LATENTS = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "DiTPipeline",
)
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
    return load_image_model(
        name, device, dtype or torch.float32, families=("sd", "sdxl", "sd3", "pixart", "dit")
    )


def prior_of(pipe: "DiffusionPipeline", prompt: str = "", guidance_scale: float = 1.0) -> Prior:
    """Return a pipeline's model as a prior: of pixels, or of latents for those of `LATENTS`.

    A flow model is read on the path of a table of noise levels: at the same ratio of noise and signal both states are
    one but for their size.

    Args:
        pipe: A DDPM or DDIM pipeline, or one of `LATENTS`; it is not changed.
        prompt: What the image shows; the number of a class or nothing for DiT.
        guidance_scale: Above 1: classifier-free guidance towards the prompt.

    Raises:
        UnsupportedHostError: When it is another pipeline.
        InputError: When DiT is given a text.
    """
    host, name = from_scheduler(pipe.scheduler), type(pipe).__name__
    if name in LATENTS:
        predict = _conditioned(pipe, prompt, guidance_scale)
    elif name in UNCONDITIONAL:

        def predict(x: Tensor, t: float) -> Tensor:
            return pipe.unet(x.to(pipe.unet.dtype), t).sample.to(x.dtype)
    else:
        raise UnsupportedHostError(
            f"red-diff works with {', '.join((*UNCONDITIONAL, *LATENTS))}, not with {name}"
        )
    shape = _denoised_shape(pipe)
    if isinstance(host.schedule, TableSchedule):
        return Prior(predict, host.schedule, shape, host.prediction_type)
    schedule, count = table_schedule("linear"), host.num_train_timesteps

    def from_flow(x: Tensor, t: int) -> Tensor:
        alpha, sigma = (float(part) for part in schedule.level(t))
        noise = sigma / (alpha + sigma)  # of alpha : sigma = 1 - noise : noise
        on_path = x / (alpha + sigma)
        return on_path + (1 - noise) * predict(on_path, noise * count)

    return Prior(from_flow, schedule, shape)


def _conditioned(
    pipe: "DiffusionPipeline", prompt: str, guidance_scale: float
) -> Callable[[Tensor, float], Tensor]:
    """Return `predict(x, t)` of a model with the conditions that its pipeline itself feeds for a prompt."""
    layout, model, guided = layout_of(pipe), denoiser_of(pipe), guidance_scale > 1
    arguments = call_arguments(
        layout.family, _prompts(pipe, prompt), Sampling(guidance_scale=guidance_scale), slice(None)
    )
    if layout.family == "pixart":
        arguments["use_resolution_binning"] = False
    ((call, _),) = record_step(pipe, {**arguments, "num_inference_steps": 2})

    def predict(x: Tensor, t: float) -> Tensor:
        rows = torch.arange(call.rows).repeat_interleave(len(x))
        args, kwargs = take_rows((call.args, call.kwargs), rows, call.rows, layout.shared)
        given = {
            layout.sample: torch.cat([x] * call.rows).to(model.dtype),
            "timestep": torch.full((len(rows),), t, device=x.device),
        }
        names = (layout.sample, "timestep")[: len(args)]
        rest = {name: value for name, value in given.items() if name not in names}
        output = model(*(given[name] for name in names), *args[len(names) :], **{**kwargs, **rest})
        parts = prediction_of(output)[:, : len(x[0])].to(x.dtype).chunk(call.rows)
        if not guided:
            return parts[0]
        by_role = dict(zip(layout.roles, parts, strict=True))
        return guide(by_role["uncond"], by_role["cond"], guidance_scale)

    return predict


def _prompts(pipe: "DiffusionPipeline", prompt: str) -> list:
    """Return a prompt as the pipeline takes it, in a list: a text, or the number of a class for DiT."""
    if layout_of(pipe).family != "dit":
        return [prompt]
    if prompt and not (prompt.isdecimal() and int(prompt) < NO_CLASS):
        raise InputError(
            f"DiT takes the number of a class, 0 to {NO_CLASS - 1}, as its prompt, got {prompt!r}"
        )
    return [int(prompt) if prompt else NO_CLASS]


def _denoised_shape(pipe: "DiffusionPipeline") -> tuple[int, int, int]:
    config = (denoiser_of(pipe) if type(pipe).__name__ in LATENTS else pipe.unet).config
    size = config.sample_size
    return (config.in_channels, size, size) if isinstance(size, int) else (config.in_channels, *size)


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
        pipe: One of `LATENTS`.
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
        image = self.operator.start(y).clamp(-1, 1)
        return encode_images(self.pipe, image / 2 + 0.5).to(y)


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
