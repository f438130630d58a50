"""Ways to draw the same prompts, at what they cost: plain, random masks, best of n, optimised masks, trained masks."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.memory import peak_mib
from noiseworks.kits.diffusers_hosts.drawing import Prompts, draw
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.kits.pictures import grid, to_pixels, write_picture
from noiseworks.maskunet.masking import MaskNet
from noiseworks.maskunet.optimising import optimise_masks
from noiseworks.maskunet.options import Compared, RandomMasks, RewardSchedule
from noiseworks.maskunet.random_masks import attach_random
from noiseworks.maskunet.rewarding import Weighted, total_reward
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHOWN = 8
Way = Callable[[Prompts, Sampling, RewardSchedule], Tensor]


@torch.no_grad()
def draw_images(pipe: "DiffusionPipeline", prompts: Prompts, sampling: Sampling) -> Tensor:
    """Return images of prompts as the pipeline is now, [n, 3, H, W] in [0, 1]."""
    return torch.cat([part.float().cpu() for part in draw(pipe, prompts, sampling, "pt")])


@torch.no_grad()
def score_images(scorers: Weighted, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the total reward of images, [n]."""
    return torch.cat(
        [
            total_reward(scorers, images[k : k + 16], list(prompts[k : k + 16]))
            for k in range(0, len(images), 16)
        ]
    )


@torch.no_grad()
def best_of(
    pipe: "DiffusionPipeline", prompts: Prompts, scorers: Weighted, sampling: Sampling, count: int
) -> Tensor:
    """Return of each prompt the image with the highest reward among `count`, from noises of their own.

    Args:
        pipe: The pipeline.
        prompts: The prompts.
        scorers: What images are chosen by.
        sampling: How they are drawn; the first of each prompt has the noise of a plain run.
        count: Images a prompt.
    """
    best, highest = None, None
    for turn in range(count):
        images = draw_images(pipe, prompts, replace(sampling, seed=sampling.seed + turn * len(prompts)))
        rewards = score_images(scorers, images, prompts)
        if best is None:
            best, highest = images, rewards
            continue
        better = rewards > highest
        best = torch.where(better[:, None, None, None], images, best)
        highest = torch.maximum(highest, rewards)
    return best


def equal_passes(schedule: RewardSchedule, steps: int) -> int:
    """Return how many plain images have the network calls of one optimised image, rounded up."""
    return -(-schedule.passes(steps) // steps)


def contest(
    pipe: "DiffusionPipeline",
    prompts: Prompts,
    scorers: Weighted,
    compared: Compared,
    schedule: RewardSchedule,
    sampling: Sampling,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return a row for each way to draw the prompts, and its images.

    Args:
        pipe: The pipeline.
        prompts: The prompts.
        scorers: What images are worth.
        compared: What takes part.
        schedule: Of optimised masks.
        sampling: How all of them draw.
    """
    steps = sampling.num_inference_steps
    count = compared.best_of or equal_passes(schedule, steps)
    net = None if compared.masks is None else MaskNet.from_pretrained(compared.masks).to(pipe.device)

    def attached(make: Callable[[], Any]) -> Way:
        def way(texts: Prompts, drawn: Sampling, _: RewardSchedule) -> Tensor:
            with make():
                return draw_images(pipe, texts, drawn)

        return way

    ways: dict[str, tuple[int, Way]] = {
        "plain": (steps, attached(nullcontext)),
        "random masks": (steps, attached(lambda: attach_random(pipe, RandomMasks()))),
        f"best of {count}": (
            steps * count,
            lambda texts, drawn, _: best_of(pipe, texts, scorers, drawn, count),
        ),
        "optimised masks": (
            schedule.passes(steps),
            lambda texts, drawn, plan: optimise_masks(pipe, texts, scorers, plan, drawn).images,
        ),
    }
    if net is not None:
        ways["trained masks"] = (steps, attached(lambda: net.attach(pipe)))
    one_step = replace(sampling, num_inference_steps=1, batch_size=1)
    rows, images = [], {}
    for name, (calls, way) in ways.items():
        begin = time.perf_counter()
        images[name] = way(prompts, sampling, schedule)
        seconds = (time.perf_counter() - begin) / len(prompts)
        # the memory of one learning step of one image, which is slow to count
        peak = peak_mib(partial(way, prompts[:1], one_step, replace(schedule, warm_steps=0)), pipe.device)[1]
        reward = float(score_images(scorers, images[name], prompts).mean())
        rows.append({"way": name, "calls": calls, "reward": reward, "seconds": seconds, "peak_mib": peak})
    return rows, images


def write_images(images: Mapping[str, Tensor], path: Path) -> None:
    """Write a picture with a row of images for each way."""
    rows = {name: to_pixels(found[:SHOWN]) for name, found in images.items()}
    side = next(iter(images.values())).shape[-1]
    write_picture(grid(rows, scale=2 if side < 128 else 1), path)
