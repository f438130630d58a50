"""Drawing from a distribution, and what it changes against standard normal noise and other uses of as many images."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.memory import peak_mib
from noiseworks.core.noise import mix64
from noiseworks.find.diffusers import PipelineDrawing
from noiseworks.find.fitting import FIND, best_noise, cross_entropy
from noiseworks.find.noise import NoisePolicy
from noiseworks.find.options import Contest, Fitting, Learned, Objective
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning import Reward, Rollout, diversity, named_reward, score
from noiseworks.kits.image_tuning.options import FAMILIES
from torch import Tensor

SHOWN = 8
# Where noise comes from: a distribution, one noise again and again, or None for standard normal noise.
Source = NoisePolicy | Tensor | None


def opened(model: str, prompt: str, rollout: Rollout, hardware: Hardware) -> PipelineDrawing:
    """Load a pipeline that draws a prompt."""
    pipe = load_pipeline(model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    return PipelineDrawing(pipe, prompt, rollout)


def drawing_of(learned: Learned, hardware: Hardware, rollout: Rollout) -> tuple[NoisePolicy, PipelineDrawing]:
    """Load a distribution and the pipeline that draws its prompt.

    Raises:
        InputError: When the distribution is of latents of another shape.
    """
    policy, prompt = NoisePolicy.from_pretrained(learned.noise)
    drawing = opened(learned.model, prompt, rollout, hardware)
    if drawing.shape != policy.shape:
        raise InputError(
            f"{learned.noise} is of noise {policy.shape}, this pipeline takes {drawing.shape}; fit it anew"
        )
    return policy, drawing


def fit_of(drawing: PipelineDrawing, reward: str, fitting: Fitting, objective: Objective) -> FIND:
    """Return the fit of a drawing's noise to a reward, not yet begun."""
    worth = drawing.worth(named_reward(reward, "find"))
    return FIND(worth, drawing.shape, drawing.text, fitting, objective)


def figures_of(found: FIND) -> dict[str, float]:
    """Return images scored, mean reward of the first and of the last tenth, mean |mu| and sigma."""
    tenth = max(1, len(found.rewards) // 10)
    policy = found.policy
    return {
        "queries": found.queries,
        "first": sum(found.rewards[:tenth]) / tenth,
        "last": sum(found.rewards[-tenth:]) / tenth,
        "mean_abs": float(policy.mean.detach().abs().mean()),
        "std": float(policy.std.detach().mean()),
    }


def images_from(drawing: PipelineDrawing, source: Source, count: int, seed: int) -> Tensor:
    """Return images from fresh noise of a source; the chains' own noise is the same for all [count, 3, H, W]."""
    if isinstance(source, Tensor):
        z = source.expand(count, *source.shape)
    else:
        policy = NoisePolicy(drawing.shape) if source is None else source.cpu()
        z = policy.sample([mix64(seed, number, 2) >> 2 for number in range(count)])
    return drawing(z, [mix64(seed, number, 3) >> 2 for number in range(count)])


def measured(
    drawing: PipelineDrawing, sources: Mapping[str, Source], reward: Reward, contest: Contest
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Return for each source mean reward, share of successes and diversity, and its images."""
    figures, images, count = {}, {}, contest.count
    for name, source in sources.items():
        images[name] = images_from(drawing, source, count, contest.trial_seed)
        rewards = score(reward, images[name], [drawing.prompt] * count)[:, 0]
        figures[name] = {
            "reward": float(rewards.mean()),
            "success": float((rewards >= contest.success).float().mean()),
            "diversity": float(diversity(images[name], torch.zeros(count, dtype=torch.long))[0]),
        }
    return figures, images


def compared(
    drawing: PipelineDrawing, reward: str, fitting: Fitting, objective: Objective, contest: Contest
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `measured` says of standard normal noise, the best noise, the cross-entropy method and FIND.

    All score equally many images before; seconds are of that, `peak_mib` of drawing a row of images. Some images of
    each are returned as well.
    """
    found = fit_of(drawing, reward, fitting, objective)
    budget = (fitting.max_steps * fitting.batch_size, fitting.seed)
    ways = {
        "standard": lambda: None,
        "best noise": lambda: best_noise(found.worth, drawing.shape, *budget),
        "cross-entropy": lambda: cross_entropy(found.worth, drawing.shape, *budget),
        "find": lambda: found.fit(),
    }
    sources, seconds = {}, {}
    for name, way in ways.items():
        began = time.perf_counter()
        sources[name] = way()
        seconds[name] = time.perf_counter() - began
    figures, images = measured(drawing, sources, named_reward(reward, "find"), contest)
    for name, row in figures.items():
        row["fit_seconds"] = seconds[name]
    _, memory = peak_mib(lambda: images_from(drawing, found.policy, SHOWN, 0), drawing.policy.device)
    return figures | {"peak_mib": memory}, {name: one[:SHOWN] for name, one in images.items()}
