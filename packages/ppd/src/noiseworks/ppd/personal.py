"""Drawing for somebody, and asking the branch which of two images somebody would prefer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.kits.diffusers_hosts import Sampling, sample_generators
from noiseworks.kits.image_tuning import DenoisingError, denoising_delta
from noiseworks.ppd.branch import UserBranch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@torch.no_grad()
def draw_for(
    pipe: "DiffusionPipeline",
    branch: UserBranch | None,
    prompts: Sequence[str],
    users: Tensor | None,
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Return one image a prompt, for one user each, on the CPU [n, 3, H, W] in [0, 1].

    Args:
        pipe: The pipeline.
        branch: Its branch; None draws without one.
        prompts: n prompts.
        users: Whom each is for [n, d], from `Users.profile`.
        sampling: How to draw.
        seeds: One a sample, by default sampling's seed and the numbers after it.
    """
    seeds = range(sampling.seed, sampling.seed + len(prompts)) if seeds is None else seeds
    guided, found = sampling.guidance_scale > 1, []
    for first in range(0, len(prompts), sampling.batch_size):
        rows = slice(first, first + sampling.batch_size)
        told = {} if branch is None else branch.arguments(users[rows], guided)
        texts, negative = list(prompts[rows]), None
        if sampling.negative_prompt is not None:
            negative = [sampling.negative_prompt] * len(texts)
        images = pipe(
            texts,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            generator=sample_generators(seeds[rows]),
            output_type="pt",
            negative_prompt=negative,
            **told,
        ).images
        found.append(images.float().cpu())
    return torch.cat(found)


@torch.no_grad()
def preferred(
    error: DenoisingError,
    branch: UserBranch,
    pairs: Tensor,
    ids: Tensor,
    users: Tensor,
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Return by how much somebody prefers the first of two latents in the branch's eyes, a margin each [n].

    Args:
        error: The denoising error of the pipeline with its branch.
        branch: The branch.
        pairs: Latents [n, 2, ...].
        ids: Prompt numbers [n].
        users: Who is asked [n, d].
        draws: Noise levels that are averaged over.
        seed: Of those and their noise.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(pairs))
    for _ in range(draws):
        timesteps = error.draw_timesteps(len(pairs), generator)
        noise = torch.randn(pairs[:, 0].shape, generator=generator)
        for rows in torch.arange(len(pairs)).split(16):
            given = (pairs[rows], ids[rows], timesteps[rows], noise[rows])
            more = branch.further(users[rows].repeat_interleave(2, 0))
            with branch.off():
                reference = error.of_groups(*given, more)
            total[rows] -= denoising_delta(error.of_groups(*given, more), reference).float().cpu() / draws
    return total
