"""Running a pipeline over many prompts with one seed a sample, as calibration, fitting and search need it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.loading import sample_generators
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.policies import AdaptiveGuidance, GuidancePolicy
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int], None]
Prompts = Sequence[str] | Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        num_inference_steps: T.
        guidance_scale: s, above 1 (`true_cfg_scale` on FLUX).
        negative_prompt: Takes the place of the empty prompt.
        batch_size: Samples a run.
        seed: Sample i is drawn with seed + i, whatever the batch size.
        extra: Further arguments of the pipeline; lists and tensors with one entry a prompt are batched along.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    negative_prompt: str | None = None
    batch_size: int = 8
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_number("num_inference_steps", self.num_inference_steps, low=1, integer=True)
        check_number("guidance_scale", self.guidance_scale, low=1.0, low_open=True)
        check_number("batch_size", self.batch_size, low=1, integer=True)
        check_number("seed", self.seed, low=0, integer=True)


def sample(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    output_type: str = "latent",
    progress: Progress | None = None,
    start: int = 0,
) -> Iterator[Any]:
    """Yield one batch of images at a time, in the order of the prompts.

    Args:
        pipe: The pipeline, with whatever is attached to it.
        prompts: Texts, or class labels for DiT.
        sampling: How to draw.
        output_type: "latent", "pt", "np" or "pil"; DiT has no "latent" and gives "pt" instead.
        progress: Called with (samples done, samples in all) after each batch.
        start: The prompt to begin with; samples keep their seeds.

    Raises:
        InputError: When there are no prompts.
    """
    if not prompts:
        raise InputError("no prompts given: name at least one")
    family = layout_of(pipe).family
    if family == "dit" and output_type == "latent":
        output_type = "pt"
    for first in range(start, len(prompts), sampling.batch_size):
        rows = slice(first, min(first + sampling.batch_size, len(prompts)))
        seeds = range(sampling.seed + rows.start, sampling.seed + rows.stop)
        yield pipe(
            **call_arguments(family, prompts, sampling, rows),
            num_inference_steps=sampling.num_inference_steps,
            generator=sample_generators(seeds),
            output_type=output_type,
        ).images
        if progress is not None:
            progress(rows.stop, len(prompts))


def call_arguments(family: str, prompts: Prompts, sampling: Sampling, rows: slice) -> dict[str, Any]:
    """Return a family's call arguments for some of the prompts.

    Args:
        family: The pipeline's family.
        prompts: All prompts.
        sampling: How to draw.
        rows: Which of the prompts.
    """
    chosen = list(prompts[rows])
    batched = {k: v[rows] if _per_prompt(v, len(prompts)) else v for k, v in sampling.extra.items()}
    if family == "dit":
        return {"class_labels": chosen, "guidance_scale": sampling.guidance_scale, **batched}
    arguments: dict[str, Any] = {"prompt": chosen, **batched}
    if family == "flux":  # true guidance needs a negative prompt, if only an empty one
        arguments["true_cfg_scale"] = sampling.guidance_scale
        arguments["negative_prompt"] = [sampling.negative_prompt or ""] * len(chosen)
    else:
        arguments["guidance_scale"] = sampling.guidance_scale
        if sampling.negative_prompt is not None:
            arguments["negative_prompt"] = [sampling.negative_prompt] * len(chosen)
    return arguments


def sample_latents(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    policy: GuidancePolicy,
    progress: Progress | None = None,
    output_type: str = "latent",
) -> Tensor:
    """Return the final latents (or images, "pt") of all prompts under a policy, `[n, ...]`, float32 on the CPU."""
    with attach(pipe, policy):
        batches = sample(pipe, prompts, sampling, output_type, progress)
        return torch.cat([batch.float().cpu() for batch in batches])


def record_similarity(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    space: str = "auto",
    progress: Progress | None = None,
) -> Tensor:
    """Return the similarity of the predictions along fully guided runs, float64 `[T, n, pairs]`.

    Args:
        pipe: The pipeline.
        prompts: Texts, or class labels for DiT.
        sampling: How to draw.
        space: Where similarity is measured.
        progress: Called with (samples done, samples in all).
    """
    guided = AdaptiveGuidance(threshold=2.0, space=space)
    with attach(pipe, guided) as handle:
        for _ in sample(pipe, prompts, sampling, progress=progress):
            pass
        return torch.cat([state.gamma for state in handle.states], dim=1)


def _per_prompt(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple | Tensor) and len(value) == count
