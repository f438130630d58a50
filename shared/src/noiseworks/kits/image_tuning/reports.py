"""What a trial shows: rewards before and after, and the images of both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind
from noiseworks.core.output import results
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.adapters import load_lora, reference
from noiseworks.kits.image_tuning.evaluation import Draws, diversity, draw_scored, win_interval, win_rate
from noiseworks.kits.image_tuning.options import FAMILIES, Rollout, Subject, Trial
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.image_tuning.rewards import Reward
from noiseworks.kits.pictures import grid, to_pixels, write_picture

SHOWN = 8


def adapted(subject: Subject, lora: Path, rollout: Rollout, hardware: Hardware) -> Policy:
    """Return a pipeline with a saved adapter and the prompts to try it on.

    Args:
        subject: The model and the prompts.
        lora: The adapter's folder.
        rollout: How it draws.
        hardware: Where it runs.

    Raises:
        InputError: When model, prompts or adapter cannot be loaded.
    """
    texts = subject.texts()
    pipe = load_pipeline(subject.model, hardware.torch_device(), hardware.torch_dtype(), FAMILIES)
    policy = Policy(pipe, texts, rollout)
    load_lora(pipe, lora)
    return policy


def tried(policy: Policy, reward: Reward, trial: Trial) -> dict[str, Draws]:
    """Return what a policy draws without its adapter ("before") and with it ("after"), from the same noise."""
    with reference(policy.denoiser):
        before = draw_scored(policy, reward, trial)
    return {"before": before, "after": draw_scored(policy, reward, trial)}


def report(
    draws: Mapping[str, Draws], out: Path | None, kind: FolderKind, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return rewards (mean, median) and diversity, and of all but the first the share of images that beat its own.

    The share of several images has a 95 % interval, by a bootstrap over prompts and their images. Diversity is the mean
    distance between images of a prompt, where there are several of each.

    Args:
        draws: Name -> images, what is compared with first.
        out: Folder for the figures and the images, or None.
        kind: What the folder is.
        settings: What the trial was.
    """
    first, found = next(iter(draws.values())), {}
    for name, one in draws.items():
        values = one.rewards[:, 0]
        found[name] = {"reward": float(values.mean()), "median": float(values.quantile(0.5))}
        if int(one.prompt_ids.bincount().min()) > 1:
            found[name]["diversity"] = float(diversity(one.images, one.prompt_ids).mean())
        if one is not first:
            wins = win_rate(values, first.rewards[:, 0])
            found[name]["win_rate"] = float(wins.mean())
            if len(wins) > 1:
                found[name]["win_interval"] = win_interval(wins, one.prompt_ids)
    if out is not None:
        with results(out, kind, {**settings, "figures": found}) as folder:
            rows = {name: to_pixels(one.images[:SHOWN]) for name, one in draws.items()}
            height = next(iter(rows.values())).shape[1]
            write_picture(grid(rows, scale=max(1, 64 // height)), folder / "images.png")
    return found
