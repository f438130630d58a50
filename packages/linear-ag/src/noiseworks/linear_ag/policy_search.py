"""Running a policy search on a diffusers pipeline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.drawing import Progress, Prompts, call_arguments
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.loading import sample_generators
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction
from noiseworks.linear_ag.calibration import latent_loss
from noiseworks.linear_ag.diffusers import HOOK_NAME
from noiseworks.linear_ag.options import SearchSettings
from noiseworks.linear_ag.policies import AdaptiveGuidance, FixedPolicy
from noiseworks.linear_ag.sampling import sample_latents
from noiseworks.linear_ag.search import (
    discretise,
    guidance_position,
    local_search,
    mixture,
    mixture_of_three,
    relaxed_search,
    truncation_policies,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class _MixtureHook(DenoiserHook):
    """Hands the host predictions from which its own formula makes just the relaxed prediction."""

    def __init__(self, pipe: "DiffusionPipeline", scales: tuple[float, ...], guidance_scale: float):
        super().__init__(pipe)
        self.scales, self.guidance_scale = scales, guidance_scale
        self.weights = torch.empty(0)

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate all predictions and return the mixture."""
        if call.role is None and not call.run.guided:
            return self.evaluate(call)
        # The unrolled sampler would keep every activation of every step; recompute them instead.
        output = checkpoint(self.evaluate, call, use_reentrant=False)
        weights = self.weights[call.run.step]
        if call.role == "cond":
            return output
        if call.role == "uncond":
            cond = prediction_of(call.run.cond_output)
            return replace_prediction(output, self._beside_cond(cond, prediction_of(output), weights))
        blocks = dict(
            zip(self.layout.roles, prediction_of(output).chunk(len(self.layout.roles)), strict=True)
        )
        if "image" in blocks:
            image_scale = call.run.pipe.image_guidance_scale
            mixed = mixture_of_three(**blocks, weights=weights, scale=self.scales[0], image_scale=image_scale)
        else:
            mixed = mixture(**blocks, weights=weights, scales=self.scales)
        return replace_prediction(output, mixed.repeat(len(blocks), *[1] * (mixed.ndim - 1)))

    def _beside_cond(self, cond: Tensor, uncond: Tensor, weights: Tensor) -> Tensor:
        """Return u' with u' + s (c - u') = u + a (c - u): the host holds c already when u is asked for."""
        share = (guidance_position(weights, self.scales) - 1.0) / (self.guidance_scale - 1.0)
        return cond - share.to(uncond.dtype) * (cond - uncond)


def search_policy(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    settings: SearchSettings = SearchSettings(),
    progress: Progress | None = None,
) -> FixedPolicy:
    """Search for a guidance policy that stays close to full guidance within a budget of evaluations.

    Args:
        pipe: The pipeline.
        prompts: Prompts to search on; the relaxed search takes one batch of them an update.
        sampling: How to draw.
        settings: The method and its knobs; the budget is in evaluations a sample.
        progress: Called with (done, in all).

    Returns:
        The policy, for `attach`.

    Raises:
        InputError: When a knob is out of range, or InstructPix2Pix is to be searched at other scales than the
            one that it draws with.
    """
    settings = replace(settings, scales=settings.scales or (sampling.guidance_scale,))
    steps, roles = sampling.num_inference_steps, len(layout_of(pipe).roles)
    if settings.method == "relaxed":
        alpha = _relaxed(pipe, prompts, sampling, settings, progress)
        return discretise(alpha, settings.scales, sampling.guidance_scale, roles)
    check_number("budget", settings.budget, low=steps, high=roles * steps)
    truncated = truncation_policies(steps)[int((settings.budget - steps) / (roles - 1))]
    if settings.reuse and "2" in truncated:
        truncated = truncated.replace("1", "4")
    if settings.method == "truncation":
        return FixedPolicy(actions=truncated)
    target = sample_latents(pipe, prompts, sampling, AdaptiveGuidance(threshold=2.0))
    tried = 0

    def evaluate(actions: str) -> float:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(tried, settings.max_evaluations)
        return latent_loss(sample_latents(pipe, prompts, sampling, FixedPolicy(actions=actions)), target)

    return FixedPolicy(actions=local_search(evaluate, truncated, settings.max_evaluations)[0])


def _relaxed(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    settings: SearchSettings,
    progress: Progress | None,
) -> Tensor:
    layout = layout_of(pipe)
    if len(layout.roles) == 3 and settings.scales != (sampling.guidance_scale,):
        raise InputError(
            f"with three predictions other scales cannot be carried out: scales must be "
            f"({sampling.guidance_scale:g},), the sampling's, got {settings.scales}"
        )
    kind = "pt" if settings.compare == "image" else "latent"
    target = sample_latents(pipe, prompts, sampling, AdaptiveGuidance(threshold=2.0), output_type=kind)
    with unrolled(pipe, prompts, sampling, settings.scales, kind) as draw:

        def sampler(weights: Tensor, update: int) -> tuple[Tensor, Tensor]:
            first = update * sampling.batch_size % len(prompts)
            rows = slice(first, min(first + sampling.batch_size, len(prompts)))
            latents = draw(weights, rows)
            return latents, target[rows].to(latents.device)

        return relaxed_search(
            sampler,
            sampling.num_inference_steps,
            settings,
            progress,
            num_roles=len(layout.roles),
            has_uncond=layout.calls == "rows",
        )


@contextmanager
def unrolled(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    scales: tuple[float, ...],
    output_type: str = "latent",
) -> Iterator[Callable[[Tensor, slice], Tensor]]:
    """Attach the relaxation and yield `draw(weights, rows)`: final latents with a graph to the weights.

    `weights` is `[T, F]`, `rows` says which prompts. DiT hands out no latents, so it gives decoded images.

    Args:
        pipe: The pipeline.
        prompts: All prompts.
        sampling: How to draw.
        scales: s_1..s_n.
        output_type: "latent", or "pt" for decoded images.
    """
    layout = layout_of(pipe)
    hook = _MixtureHook(pipe, scales, sampling.guidance_scale)
    run = type(pipe).__call__.__wrapped__  # the host's loop without its no_grad

    def draw(weights: Tensor, rows: slice) -> Tensor:
        hook.weights = weights
        seeds = range(sampling.seed + rows.start, sampling.seed + rows.stop)
        return run(
            pipe,
            **call_arguments(layout.family, prompts, sampling, rows),
            num_inference_steps=sampling.num_inference_steps,
            generator=sample_generators(seeds),
            output_type="pt" if layout.family == "dit" else output_type,
        ).images

    with attach_hook(hook, HOOK_NAME):
        yield draw
