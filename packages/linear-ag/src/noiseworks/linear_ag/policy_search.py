"""Running a policy search on a diffusers pipeline."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook, detach_hook
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.loading import sample_generators
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction
from noiseworks.linear_ag.calibration import latent_loss
from noiseworks.linear_ag.diffusers import HOOK_NAME
from noiseworks.linear_ag.policies import AdaptiveGuidance, FixedPolicy
from noiseworks.linear_ag.sampling import Progress, Prompts, Sampling, call_arguments, sample_latents
from noiseworks.linear_ag.search import (
    SearchSettings,
    discretise,
    local_search,
    mixture,
    relaxed_search,
    truncation_policies,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Method = Literal["relaxed", "truncation", "local"]


class _MixtureHook(DenoiserHook):
    """Hands the host the relaxed prediction in both places, so that its own formula returns just that."""

    def __init__(self, pipe: "DiffusionPipeline", scales: tuple[float, ...]):
        super().__init__(pipe)
        self.scales, self.weights = scales, torch.empty(0)

    def denoise(self, call: DenoiserCall) -> Any:
        if not call.run.guided:
            return self.evaluate(call)
        # The unrolled sampler would keep every activation of every step; recompute them instead.
        output = checkpoint(self.evaluate, call, use_reentrant=False)
        blocks = dict(zip(self.layout.roles, prediction_of(output).chunk(2), strict=True))
        mixed = mixture(blocks["uncond"], blocks["cond"], self.weights[call.run.step], self.scales)
        return replace_prediction(output, mixed.repeat(2, *[1] * (mixed.ndim - 1)))


def search_policy(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    settings: SearchSettings,
    method: Method = "relaxed",
    max_evaluations: int = 100,
    progress: Progress | None = None,
) -> FixedPolicy:
    """Search for a guidance policy that stays close to full guidance within a budget of evaluations.

    Args:
        pipe: The pipeline.
        prompts: Prompts to search on; the relaxed search takes one batch of them an update.
        sampling: How to draw.
        settings: Knobs; the budget is in evaluations a sample.
        method: "relaxed" (the paper's gradient search), "truncation" (guide the first p steps, the largest p
            within the budget) or "local" (improve that one by moving guided steps).
        max_evaluations: Policies that the local search may try.
        progress: Called with (done, in all).

    Returns:
        The policy, for `attach`.

    Raises:
        InputError: When a knob is out of range.
        UnsupportedHostError: When the relaxed search is asked of a host without both predictions in one call.
    """
    check_choice("method", method, ("relaxed", "truncation", "local"))
    steps = sampling.num_inference_steps
    if method == "relaxed":
        alpha = _relaxed(pipe, prompts, sampling, settings, progress)
        return discretise(alpha, settings.scales, sampling.guidance_scale)
    check_number("budget", settings.budget, low=steps, high=2 * steps)
    truncated = truncation_policies(steps)[int(settings.budget) - steps]
    if method == "truncation":
        return FixedPolicy(actions=truncated)
    target = sample_latents(pipe, prompts, sampling, AdaptiveGuidance(threshold=2.0))
    tried = 0

    def evaluate(actions: str) -> float:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(tried, max_evaluations)
        return latent_loss(sample_latents(pipe, prompts, sampling, FixedPolicy(actions=actions)), target)

    return FixedPolicy(actions=local_search(evaluate, truncated, max_evaluations)[0])


def _relaxed(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    settings: SearchSettings,
    progress: Progress | None,
) -> Tensor:
    layout = layout_of(pipe)
    if layout.calls != "rows" or len(layout.roles) != 2 or layout.family == "dit":
        raise UnsupportedHostError(
            f"the relaxed search does not fit {type(pipe).__name__}: use method='local'"
        )
    target = sample_latents(pipe, prompts, sampling, AdaptiveGuidance(threshold=2.0))
    hook = _MixtureHook(pipe, settings.scales)
    run = type(pipe).__call__.__wrapped__  # the host's loop without its no_grad

    def sampler(weights: Tensor, update: int) -> tuple[Tensor, Tensor]:
        hook.weights = weights
        first = update * sampling.batch_size % len(prompts)
        rows = slice(first, min(first + sampling.batch_size, len(prompts)))
        seeds = range(sampling.seed + rows.start, sampling.seed + rows.stop)
        latents = run(
            pipe,
            **call_arguments(layout.family, prompts, sampling, rows),
            num_inference_steps=sampling.num_inference_steps,
            generator=sample_generators(seeds),
            output_type="latent",
        ).images
        return latents, target[rows].to(latents.device)

    attach_hook(pipe, hook, HOOK_NAME)
    try:
        return relaxed_search(sampler, sampling.num_inference_steps, settings, progress)
    finally:
        detach_hook(pipe, HOOK_NAME)
