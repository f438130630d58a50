"""A profile observation by observation, written after each, so that a run that was stopped goes on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.bac.data import load_observations
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.options import Checking, Profiling
from noiseworks.bac.profiling import FeatureProfile, profile
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import DiffusionPolicy
from rich.console import Console
from rich.progress import Progress
from torch import Tensor


def bar() -> Progress:
    """Return a progress bar on the standard error, which leaves nothing behind."""
    return Progress(console=Console(stderr=True), transient=True)


def profile_into(out: Path, host: DenoiserHost, options: Profiling) -> FeatureProfile:
    """Profile a policy into a folder, or go on with the profile that it holds.

    Args:
        out: Folder of the profile.
        host: The policy.
        options: What is measured.

    Raises:
        InputError: When the folder holds a profile that was made otherwise.
    """
    wanted = vars(options) | {"fingerprint": find_stack(host).fingerprint()}
    found = FeatureProfile.from_pretrained(out) if out.is_dir() and any(out.iterdir()) else None
    before = {} if found is None else found.settings.get("options", {})
    changed = [name for name in wanted if found is not None and before.get(name) != wanted[name]]
    if changed:
        raise InputError(
            f"{out} holds a profile with another {changed[0]} ({before.get(changed[0])!r}, now "
            f"{wanted[changed[0]]!r}): give the former to go on, or name another folder"
        )
    obs = load_observations(options.data, host, options.observations, options.seed)["obs"]
    done = 0 if found is None else found.observations
    with bar() as bars:
        task = bars.add_task("profiling", total=options.observations, completed=done)
        for row in range(done, options.observations):
            one = profile(
                host,
                {"obs": obs[row : row + 1]},
                num_steps=options.steps,
                solver=options.solver,
                metrics=options.names,
                generator=torch.Generator().manual_seed(options.seed + row),
            )
            one = replace(one, settings=one.settings | {"options": wanted})
            found = one if found is None else found.merged(one)
            found.save_pretrained(out)
            bars.advance(task)
    return found


def actions_of(host: DenoiserHost, checking: Checking, steps: int) -> Callable[[int], Tensor]:
    """Return what `best_plan` runs: the predictions for observations that were not profiled, by seed of the noise.

    Args:
        host: The policy.
        checking: Which observations.
        steps: K of the profile.
    """
    obs = load_observations(checking.data, host, checking.observations, checking.seed)
    sampler = DiffusionPolicy(host, num_inference_steps=steps)

    def run(seed: int) -> Tensor:
        first = 1000 * seed + checking.seed
        generators = [torch.Generator().manual_seed(first + row) for row in range(checking.observations)]
        return sampler.predict_chunk(obs, generators).prediction

    return run


def summary(out: Path, found: FeatureProfile) -> dict[str, Any]:
    """Return a profile's size and its most volatile blocks."""
    order = sorted(range(len(found.blocks)), key=lambda block: -found.volatility[block])[:5]
    return {
        "out": str(out),
        "blocks": len(found.blocks),
        "steps": found.num_steps,
        "observations": found.observations,
        "most_volatile": [found.blocks[i] for i in order],
    }
