"""Runs of a pipeline under a policy, as calibration, fitting and search need them."""

from typing import TYPE_CHECKING

import torch
from noiseworks.kits.diffusers_hosts.drawing import Progress, Prompts, draw
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.policies import AdaptiveGuidance, GuidancePolicy
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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
        batches = draw(pipe, prompts, sampling, output_type, progress)
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
    with attach(pipe, AdaptiveGuidance(threshold=2.0, space=space)) as handle:
        for _ in draw(pipe, prompts, sampling, progress=progress):
            pass
        return torch.cat([state.gamma for state in handle.states], dim=1)
