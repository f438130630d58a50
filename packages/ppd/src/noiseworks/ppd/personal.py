"""Drawing for somebody, and asking the branch which of two images somebody would prefer."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.kits.diffusers_hosts import Sampling, layout_of, sample_generators
from noiseworks.kits.diffusers_hosts.drawing import call_arguments
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

    Neighbours of one user are drawn in one call of the pipeline: give a user's prompts in a row.

    Args:
        pipe: The pipeline.
        branch: Its branch; None draws without one.
        prompts: n prompts.
        users: Whom each is for [n, d], from `Users.profile`, or [n, shares, d] where outputs are mixed.
        sampling: How to draw.
        seeds: One a sample, by default sampling's seed and the numbers after it.
    """
    seeds = range(sampling.seed, sampling.seed + len(prompts)) if seeds is None else seeds
    told: dict[str, Any] = {}
    found = []
    for rows in _calls(len(prompts), users, sampling.batch_size):
        if branch is not None:
            told = branch.arguments(users[rows.start], sampling.guidance_scale > 1)
        images = pipe(
            **call_arguments(layout_of(pipe).family, prompts, sampling, rows),
            num_inference_steps=sampling.num_inference_steps,
            generator=sample_generators(seeds[rows]),
            output_type="pt",
            **told,
        ).images
        found.append(images.float().cpu())
    return torch.cat(found)


def _calls(count: int, users: Tensor | None, batch: int) -> Iterator[slice]:
    """Yield the rows of each call of the pipeline: neighbours of one user, `batch` at most."""
    first = 0
    while first < count:
        last = first + 1
        while last < min(count, first + batch) and (users is None or torch.equal(users[last], users[first])):
            last += 1
        yield slice(first, last)
        first = last


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
