"""The adapter to diffusers: pixel pipelines (DDPM, DDIM, DeepFloyd IF), and latent ones of six families."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Attachment, Replace, Wrap
from noiseworks.kits.attachments import attach as attach_parts
from noiseworks.kits.diffusers_hosts import (
    PIXELS,
    UNCONDITIONAL,
    DenoiserCall,
    DenoiserHook,
    HookHandle,
    add_score,
    attach_hook,
    decode_latents,
    encode_images,
    image_size,
    latents_of,
    layout_of,
    noise_level,
    prediction_of,
    prediction_type_of,
    replace_prediction,
    sample_generators,
    score_slope,
    to_x0,
)
from noiseworks.kits.diffusers_hosts.drawing import prompts_for
from noiseworks.ppap.guidance import NoisyGuide, gradient, scaled
from noiseworks.ppap.options import Strength
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NAME = "noiseworks-ppap"
FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")


def is_pixel(pipe: "DiffusionPipeline") -> bool:
    """Return whether a pipeline denoises pixels.

    Raises:
        UnsupportedHostError: When it does neither that nor belong to `FAMILIES`.
    """
    if type(pipe).__name__ in PIXELS:
        return True
    if layout_of(pipe).family not in FAMILIES:
        raise UnsupportedHostError(
            f"ppap guides {', '.join((*PIXELS, *FAMILIES))}, not {type(pipe).__name__}"
        )
    return False


def is_unconditional(pipe: "DiffusionPipeline") -> bool:
    """Return whether a pipeline denoises pixels without a condition, each row a sample."""
    return type(pipe).__name__ in UNCONDITIONAL


def timesteps_of(pipe: "DiffusionPipeline") -> int:
    """Return T, the number of timesteps that the model was trained at."""
    return int(pipe.scheduler.config.num_train_timesteps)


def channels_of(pipe: "DiffusionPipeline") -> int:
    """Return how many channels the images have that a guide sees: 3, or what a pixel pipeline denoises."""
    return int(pipe.unet.config.in_channels) if is_pixel(pipe) else 3


def noise_levels(pipe: "DiffusionPipeline") -> Tensor:
    """Return alpha and sigma of each trained timestep, `[2, T]`."""
    return torch.tensor([noise_level(pipe.scheduler, t) for t in range(timesteps_of(pipe))]).T


def seen_images(pipe: "DiffusionPipeline", x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the images that a guide sees of samples, around [-1, 1]: decoded where they are latents.

    Args:
        pipe: The pipeline.
        x: Samples [B, C, h, w], packed on FLUX.
        size: (H, W) of packed ones, by default square.
    """
    return x if is_pixel(pipe) else decode_latents(pipe, x, size).float() * 2 - 1


def model_samples(pipe: "DiffusionPipeline", images: Tensor, batch: int = 32) -> Tensor:
    """Return images in [-1, 1] as the model's samples x_0: encoded where it denoises latents."""
    if is_pixel(pipe):
        return images
    return torch.cat([encode_images(pipe, part / 2 + 0.5) for part in images.split(batch)])


class GuidanceHook(DenoiserHook):
    """Steers every prediction of a latent pipeline, so that its own guidance formula gives the steered one.

    Args:
        pipe: The pipeline.
        reader: The guide.
        target: What it shall see.
        strength: How hard.
    """

    def __init__(
        self, pipe: "DiffusionPipeline", reader: NoisyGuide, target: Tensor, strength: Strength
    ) -> None:
        super().__init__(pipe)
        self.reader, self.target, self.strength = reader, target, strength

    def denoise(self, call: DenoiserCall) -> Any:
        """Return the prediction, moved by the guide's score."""
        output = self.evaluate(call)
        if self.strength.scale == 0:
            return output
        pipe, reader, size = call.run.pipe, self.reader.to(call.sample.device), image_size(call)
        x = latents_of(call)
        found = gradient(
            lambda z: reader.log_likelihood(seen_images(pipe, z, size), call.timestep, self.target),
            x.detach(),
        )
        return add_score(call, output, scaled(found, x, self.strength))


def _pixel_forward(
    pipe: "DiffusionPipeline",
    reader: NoisyGuide,
    target: Tensor,
    strength: Strength,
    bound: float | None,
) -> Callable[..., Any]:
    """Return what takes the place of the forward of a pixel model; x_0 is clipped before the guidance."""

    def forward(beneath: Callable[..., Any], sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        t = float(torch.as_tensor(timestep).flatten()[0])
        level, kind = noise_level(pipe.scheduler, t), prediction_type_of(pipe.scheduler)
        if strength.scale == 0:
            return beneath(sample, timestep, *args, **kwargs)
        reader.to(sample.device)
        channels = sample.shape[1]  # a learned variance stands behind the prediction
        output = None

        def x0_of(output: Any, x: Tensor) -> Tensor:
            return to_x0(prediction_of(output)[:, :channels].float(), x, *level, kind)

        def value(x: Tensor) -> Tensor:
            nonlocal output
            if strength.through == "sample":
                return reader.log_likelihood(x, t, target)
            output = beneath(x.to(sample.dtype), timestep, *args, **kwargs)
            return reader.log_likelihood(_clipped(x0_of(output, x), bound), t, target)

        seen = sample if is_unconditional(pipe) else _samples(sample)
        found = scaled(gradient(value, seen), seen, strength)
        found = found.repeat(len(sample) // len(seen), 1, 1, 1)
        if output is None:
            output = beneath(sample, timestep, *args, **kwargs)
        if bound is not None and level[0] > 0:  # the prediction becomes that of the clipped x_0
            x0 = x0_of(output, sample.float()).detach()
            found = found + (_clipped(x0, bound) - x0) / score_slope(*level, "sample")
        prediction = prediction_of(output).detach().clone()
        prediction[:, :channels] += (score_slope(*level, kind) * found).to(prediction.dtype)
        return replace_prediction(output, prediction)

    return forward


def _samples(rows: Tensor) -> Tensor:
    """Return a call's samples: with classifier-free guidance each stands in both halves of the rows."""
    halves = rows.chunk(2)
    return halves[0] if len(halves) == 2 and torch.equal(*halves) else rows


def clip_bound(pipe: "DiffusionPipeline") -> float | None:
    """Return the size to which a scheduler clips x_0, None where it does not, or clips what texts have guided."""
    if not is_unconditional(pipe):
        return None
    config = pipe.scheduler.config
    return config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else None


def _clipped(x0: Tensor, bound: float | None) -> Tensor:
    """Return x_0 as the scheduler clips it: at high noise it is a guide's only way to see an image in it."""
    return x0 if bound is None else x0.clamp(-bound, bound)


def _without_clipping(pipe: "DiffusionPipeline") -> list[Replace]:
    """Return what takes the place of a scheduler that clips x_0, which would undo the guidance.

    DDIM's step would clip the guided x_0 and keep the guided noise, whose part of the guidance alone leads away from
    what is wanted. As published x_0 is clipped before the guidance, and not again.
    """
    if clip_bound(pipe) is None:
        return []
    unclipped = type(pipe.scheduler).from_config(pipe.scheduler.config, clip_sample=False)
    return [Replace(pipe, "scheduler", unclipped)]


def attach(
    pipe: "DiffusionPipeline",
    reader: NoisyGuide,
    target: Tensor | int | Sequence[int],
    strength: Strength = Strength(),
) -> Attachment | HookHandle:
    """Guide a pipeline's next runs until `detach()`: e' = e - sigma s gradient of log p(target | x_t).

    With a DDPM scheduler that is the published form of the mean, mu + Sigma s gradient, up to the step's
    1 / sqrt(alpha_t).

    Args:
        pipe: A DDPM, DDIM or IF pipeline, or a latent one of `FAMILIES`.
        reader: The guide, with experts or as it is.
        target: A class or a map for each image of a run, or one for all.
        strength: How hard.

    Returns:
        A handle: a context manager, and `detach()`.

    Raises:
        InputError: When it is attached already, or the guide cannot look at what is denoised.
        UnsupportedHostError: When the pipeline is of another kind.
    """
    target, pixel = torch.as_tensor(target), is_pixel(pipe)
    if strength.through == "denoised" and (not is_unconditional(pipe) or reader.experts is not None):
        raise InputError(
            "a look at the denoised image is for pixel pipelines without texts, and for a guide without experts"
        )
    if not pixel:
        return attach_hook(GuidanceHook(pipe, reader, target, strength), NAME)
    forward = _pixel_forward(pipe, reader, target, strength, clip_bound(pipe))
    changed = _without_clipping(pipe) if strength.scale else []
    return attach_parts(NAME, [Wrap(pipe.unet, forward), *changed])


@contextmanager
def deterministic(pipe: "DiffusionPipeline") -> Iterator[None]:
    """Let an unconditional pipeline draw by DDIM within a block, as published; others keep their schedulers."""
    if not is_unconditional(pipe):
        yield
        return
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with attach_parts("deterministic sampling", [Replace(pipe, "scheduler", scheduler)]):
        yield


def conditions_of(pipe: "DiffusionPipeline", prompt: str, count: int) -> dict[str, list]:
    """Return the arguments by which a pipeline is told what all images show; none where it has no conditions.

    Raises:
        InputError: When DiT is not given the number of a class.
    """
    if is_unconditional(pipe):
        return {}
    if is_pixel(pipe) or layout_of(pipe).family != "dit":
        return {"prompt": [prompt] * count}
    return {"class_labels": prompts_for(pipe, [prompt] * count)}


def draw_images(pipe: "DiffusionPipeline", seeds: Sequence[int], steps: int, prompt: str = "") -> Tensor:
    """Return images in [-1, 1] on the CPU, [len(seeds), C, H, W], one seed each.

    Args:
        pipe: The pipeline, with whatever is attached to it.
        seeds: Of each image's noise.
        steps: Denoising steps.
        prompt: Of all images; the number of a class for DiT.
    """
    settings = {"num_inference_steps": steps, "generator": sample_generators(seeds)}
    settings |= conditions_of(pipe, prompt, len(seeds))
    if not is_pixel(pipe):
        return pipe(output_type="pt", **settings).images.float().cpu() * 2 - 1
    if is_unconditional(pipe):
        settings["batch_size"] = len(seeds)
    with deterministic(pipe):
        made = torch.from_numpy(pipe(output_type="np", **settings).images)
    return made.permute(0, 3, 1, 2).float() * 2 - 1
