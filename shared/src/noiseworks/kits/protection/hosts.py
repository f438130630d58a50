"""A latent diffusion pipeline as protections see it: encoder, denoiser, schedule, prompt; nothing of it is changed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError, UnsupportedHostError
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(eq=False)
class Host:
    """What protections read of a pipeline.

    Attributes:
        vae: First stage.
        unet: Denoiser with 4 input channels, or 9 for inpainting.
        scheduler: A copy of the pipeline's, so that its own stays as it is.
        condition: The prompt's arguments of the denoiser, one row.
        empty: Those of the empty prompt.
        passes: Count of `encoder`, `unet` and `unet backward` passes, an image each.
    """

    vae: Any
    unet: Any
    scheduler: Any
    condition: dict[str, Any]
    empty: dict[str, Any]
    passes: Counter = field(default_factory=Counter)

    @property
    def inpaints(self) -> bool:
        """Whether the denoiser also takes a mask and the masked image's latent."""
        return self.unet.config.in_channels == 2 * self.vae.config.latent_channels + 1

    @property
    def factor(self) -> int:
        """Pixels that a side of an image must be divisible by."""
        return 2 ** (len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The schedule's products of alphas, [T]."""
        return self.scheduler.alphas_cumprod

    def first_timestep(self, steps: int) -> int:
        """Return the timestep with which sampling in so many steps begins: 751 for 4 steps of Stable Diffusion."""
        self.scheduler.set_timesteps(steps)
        return int(self.scheduler.timesteps[0])

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents [B, C, h, w] of images in [0, 1], with a graph where the images have one.

        Args:
            images: [B, 3, H, W].
            noise: Of the posterior sample, [B, C, h, w]; None takes the posterior's mean.
        """
        self.passes["encoder"] += len(images)
        posterior = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist
        latents = (
            posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        )
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return _at_least_single((latents - shift) * self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [0, 1], not clipped, of scaled latents."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = (latents / self.vae.config.scaling_factor + shift).to(self.vae.dtype)
        return self.vae.decode(scaled).sample.float() / 2 + 0.5

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """Return the shape of a latent of images [B, 3, H, W]."""
        f = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, images.shape[-2] // f, images.shape[-1] // f

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor | int,
        masked: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        condition: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return the predicted noise [B, C, h, w].

        Args:
            noisy: Noisy latents.
            timesteps: One, or one a row.
            masked: Latent of the masked image, where the host inpaints.
            mask: [B, 1, H, W], 1 where it repaints; by default nowhere.
            condition: The prompt's arguments, by default the host's.
        """
        timesteps = torch.as_tensor(timesteps, device=noisy.device).expand(len(noisy))
        inputs = noisy
        if self.inpaints:
            if masked is None:
                raise InputError("an inpainting model needs the masked image's latent")
            small = noisy.new_zeros(len(noisy), 1, *noisy.shape[-2:])
            if mask is not None:
                small = F.interpolate(mask.to(noisy), size=noisy.shape[-2:])
            inputs = torch.cat([noisy, small, masked], dim=1)
        self.passes["unet"] += len(noisy)
        if torch.is_grad_enabled() and inputs.requires_grad:
            self.passes["unet backward"] += len(noisy)
        arguments = _expanded(condition or self.condition, len(noisy))
        found = self.unet(inputs.to(self.unet.dtype), timesteps, return_dict=False, **arguments)[0]
        found = _at_least_single(found)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return found
        abar = self.alphas_cumprod.to(noisy)[timesteps].view(-1, 1, 1, 1)
        if kind == "v_prediction":
            return abar.sqrt() * found + (1 - abar).sqrt() * noisy
        return (noisy - abar.sqrt() * found) / (1 - abar).sqrt()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sqrt(abar_t) z + sqrt(1 - abar_t) noise."""
        abar = self.alphas_cumprod.to(latents)[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def _at_least_single(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _expanded(condition: dict[str, Any], rows: int) -> dict[str, Any]:
    return {
        name: _expanded(value, rows) if isinstance(value, dict) else value.expand(rows, *value.shape[1:])
        for name, value in condition.items()
    }


@contextmanager
def host_of(pipe: "DiffusionPipeline", prompt: str = "") -> Iterator[Host]:
    """Yield a pipeline as a host; its weights need no gradient for as long as the block lasts.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline for text, image-to-image or inpainting.
        prompt: What the denoiser is conditioned on.

    Yields:
        The host; afterwards the pipeline is as it was, bit for bit.

    Raises:
        UnsupportedHostError: When it has no such VAE and U-Net, or another number of channels.
        InputError: When the prompt is longer than the tokenizer takes.
    """
    unet, vae = getattr(pipe, "unet", None), getattr(pipe, "vae", None)
    latent = getattr(getattr(vae, "config", None), "latent_channels", 0)
    if unet is None or not latent or unet.config.in_channels not in (latent, 2 * latent + 1):
        raise UnsupportedHostError(
            f"{type(pipe).__name__} has no VAE and U-Net of {latent} or {2 * latent + 1} channels; "
            "use a Stable Diffusion or SDXL pipeline"
        )
    tokens = len(pipe.tokenizer(prompt, verbose=False)["input_ids"])
    if tokens > pipe.tokenizer.model_max_length:
        raise InputError(
            f"the prompt has {tokens} tokens, at most {pipe.tokenizer.model_max_length} fit: shorten it"
        )
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    needed = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    modes = [(module, module.training) for root in modules for module in root.modules()]
    try:
        for parameter, _ in needed:
            parameter.requires_grad_(False)
        for module in modules:
            module.eval()
        with torch.no_grad():
            text, empty = _condition(pipe, prompt), _condition(pipe, "")
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        yield Host(vae, unet, scheduler, text, empty)
    finally:
        for parameter, kept in needed:
            parameter.requires_grad_(kept)
        for module, training in modes:
            module.training = training


def _condition(pipe: "DiffusionPipeline", prompt: str) -> dict[str, Any]:
    device = pipe.unet.device
    plain = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    found = pipe.encode_prompt(prompt, **plain)
    if pipe.unet.config.addition_embed_type != "text_time":
        return {"encoder_hidden_states": found[0]}
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    ids = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=found[0].dtype)
    return {
        "encoder_hidden_states": found[0],
        "added_cond_kwargs": {"text_embeds": found[2], "time_ids": ids},
    }
