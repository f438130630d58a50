"""Choosing the threshold of Adaptive Guidance and fitting LinearAG on a pipeline and prompts of one's own."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts.drawing import Progress, Prompts, draw
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, attach_hook
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.linear_ag.diffusers import HOOK_NAME, GuidanceHook, GuidedRun, check_host, run_settings
from noiseworks.linear_ag.linear import (
    LinearCoefficients,
    LinearGuidance,
    fit_from_gram,
    gram_matrix,
    settings_from,
    settings_record,
)
from noiseworks.linear_ag.options import Aim, Regression
from noiseworks.linear_ag.policies import (
    AdaptiveGuidance,
    FixedPolicy,
    GuidancePolicy,
    RunSettings,
)
from noiseworks.linear_ag.sampling import record_similarity, sample_latents
from noiseworks.linear_ag.thresholds import candidate_thresholds, threshold_for_nfe
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PARTIAL = "linear-ag/partial-gram"


def calibrate(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    aim: Aim,
    policy: AdaptiveGuidance | None = None,
    progress: Progress | None = None,
) -> AdaptiveGuidance:
    """Choose the threshold of Adaptive Guidance for a model, scheduler, number of steps and guidance scale.

    A threshold does not carry over from one model to another, so it is set from similarities recorded on
    guided runs: for `target_nfe` exactly (converged or not, a run costs what its record says), for
    `max_quality_loss` by bisection over thresholds, with one more pass over the prompts each.

    Args:
        pipe: The pipeline.
        prompts: Some tens of typical prompts.
        sampling: Steps, scale and seed that will be used.
        aim: Mean evaluations a sample, between T + 1 and 2 T, or the largest allowed mean of
            |z - z_cfg|^2 / |z_cfg|^2 over final latents.
        policy: Everything but the threshold, by default `AdaptiveGuidance()` in the aim's space.
        progress: Called with (samples done, samples in all) for each pass.

    Raises:
        InputError: When not exactly one of the two aims is given, or it is out of range.
    """
    aim.check_given(sampling.num_inference_steps, len(layout_of(pipe).roles))
    policy = policy or AdaptiveGuidance(space=aim.space)
    gamma = record_similarity(pipe, prompts, sampling, policy.space, progress)
    if aim.target_nfe is not None:
        return replace(policy, threshold=threshold_for_nfe(gamma, aim.target_nfe, policy))
    target = sample_latents(pipe, prompts, sampling, AdaptiveGuidance(threshold=2.0), progress)

    def loss(threshold: float) -> float:
        tried = replace(policy, threshold=threshold)
        return latent_loss(sample_latents(pipe, prompts, sampling, tried, progress), target)

    return replace(policy, threshold=_smallest(candidate_thresholds(gamma), loss, aim.max_quality_loss))


def latent_loss(latents: Tensor, target: Tensor) -> float:
    """Return the mean over samples of |z - z*|^2 / |z*|^2, both `[n, ...]`."""
    error = (latents - target).flatten(1).square().sum(dim=1)
    return float((error / target.flatten(1).square().sum(dim=1)).mean())


def _smallest(thresholds: Sequence[float], loss: Callable[[float], float], limit: float) -> float:
    # The loss falls as the threshold rises; the last candidate is full guidance with no loss at all.
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if loss(thresholds[middle]) <= limit:
            high = middle
        else:
            low = middle + 1
    return thresholds[high]


class _FitHook(GuidanceHook):
    """Adds each finished run to a Gram matrix; with `closed` it runs LinearAG but measures the truth."""

    def __init__(self, pipe: "DiffusionPipeline", policy: GuidancePolicy, closed: bool):
        super().__init__(pipe, policy, observe=self._keep, shadow=closed)
        self.closed = closed
        self.gram: Tensor | None = None
        self.settings: RunSettings | None = None
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def _begin_guided(self, call: DenoiserCall, run: GuidedRun) -> None:
        super()._begin_guided(call, run)
        self.settings = run_settings(self, call)
        self._rows = []

    def _keep(self, call: DenoiserCall, predictions: Tensor, handed: Tensor) -> None:
        channels = slice(None) if self.channels is None else slice(self.channels)
        self._rows.append(
            (predictions[0][:, channels], handed[-1][:, channels], predictions[-1][:, channels])
        )
        if call.run.is_last:
            cond, fed, true = (torch.stack(rows) for rows in zip(*self._rows, strict=True))
            gram = gram_matrix(cond, fed, true if self.closed else None).cpu()
            self.gram = gram if self.gram is None else self.gram + gram
            self._rows = []


def fit_linear(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    regression: Regression = Regression(),
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> LinearCoefficients:
    """Fit LinearAG's coefficients on runs of a pipeline.

    Args:
        pipe: The pipeline, with a first-order deterministic scheduler.
        prompts: About 200 prompts in the paper.
        sampling: Steps, scale, negative prompt and scheduler that will be used; the fit holds for these only.
        regression: Ridge and intercept.
        partial: A directory in which the sums are kept after each batch; a stopped fit goes on from there.
        progress: Called with (samples done, samples in all).

    Raises:
        InputError: When the scheduler calls the model twice a step.
        UnsupportedHostError: For InstructPix2Pix, which has three predictions.
    """
    gram, settings = collect_gram(pipe, prompts, sampling, partial=partial, progress=progress)
    return fit_from_gram(gram, sampling.num_inference_steps, settings=settings, **vars(regression))


def collect_gram(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    sampling: Sampling,
    *,
    closed_loop: LinearGuidance | None = None,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, RunSettings]:
    """Return the Gram matrix of runs of a pipeline, and their settings; arguments as in `fit_linear`.

    With `closed_loop` the runs follow that LinearAG policy instead of full guidance, so that a fit
    (`linear.fit_from_gram`) sees its own errors.

    Raises:
        InputError: When the scheduler calls the model twice a step.
        UnsupportedHostError: For InstructPix2Pix, which has three predictions.
    """
    if getattr(pipe.scheduler, "order", 1) > 1:
        raise InputError(
            f"{type(pipe.scheduler).__name__} calls the model twice a step: use a first-order scheduler"
        )
    policy = closed_loop or FixedPolicy(actions="2" * sampling.num_inference_steps)
    check_host(pipe, policy)
    hook = _FitHook(pipe, policy, closed=closed_loop is not None)
    if len(hook.order) != 2:
        raise UnsupportedHostError("LinearAG is defined for two predictions, not for InstructPix2Pix")
    key = fit_key(prompts, sampling, policy)
    done = 0 if partial is None else _resume(hook, Path(partial), key)
    with attach_hook(hook, HOOK_NAME):
        for batch in draw(pipe, prompts, sampling, start=done):
            done += len(batch)
            if partial is not None:
                config, tensors = settings_record(hook.settings)
                save_artifact(
                    partial, PARTIAL, {"key": key, "done": done, **config}, {"gram": hook.gram, **tensors}
                )
            if progress is not None:
                progress(done, len(prompts))
    return hook.gram, hook.settings


def fit_key(prompts: Prompts, sampling: Sampling, policy: GuidancePolicy) -> str:
    """Return what a partial fit belongs to: prompts, sampling and policy, as a digest."""
    text = repr(
        (list(prompts), sampling.num_inference_steps, sampling.guidance_scale, sampling.negative_prompt)
    )
    return hashlib.sha256(
        f"{text} {sampling.seed} {type(policy).__name__} {policy.history}".encode()
    ).hexdigest()


def _resume(hook: _FitHook, partial: Path, key: str) -> int:
    if not partial.exists():
        return 0
    config, tensors = load_artifact(partial, PARTIAL)
    if config["key"] != key:
        raise InputError(
            f"{partial} holds a fit on other prompts or settings: remove it or name another folder"
        )
    hook.gram, hook.settings = tensors["gram"], settings_from(config, tensors)
    return config["done"]
