"""Training recipes of the Meta-World policies, one for each task of `TASKS`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.metaworld.datasets import demonstrations
from noiseworks.bench.testbeds.metaworld.simulation import ACTION_DIM, OBS_DIM, TASKS, MetaWorldBatch
from noiseworks.bench.testbeds.tabletop.recipes import UNET, build, publish
from noiseworks.bench.testbeds.training import Captions, Recipe
from noiseworks.kits.policies.chunking import windows

ROWS = 100  # demonstrations
TUNING_SEED = 500
POLICY = replace(UNET, obs_dim=OBS_DIM, action_dim=ACTION_DIM)


def prepare(task: str, captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return training windows of `rows` demonstrations; there are no captions."""
    spec = POLICY.chunk
    return windows(demonstrations(task, rows or ROWS), spec, pad_after=spec.horizon - spec.n_obs_steps)


def tune(task: str, folder: Path, n: int) -> dict[str, float]:
    """Return the success on tuning seeds with 10 deterministic steps, which is quick."""
    report = _evaluate(task, folder, n, TUNING_SEED, solver="ddim", steps=10)
    return {"share_right": report.success_rate, "steps": float(report.steps.mean())}


def measure(task: str, folder: Path, n: int) -> dict[str, Figure]:
    """Return the card's figures on tuning seeds: success of the full sampler and of fewer steps."""
    arms = (("100 DDPM steps", "ddpm", 100), ("10 DDIM steps", "ddim", 10))
    return {
        f"success, {name}": figure(
            _evaluate(task, folder, n, CARD_SEED, solver=solver, steps=steps).success.astype(float)
        )
        for name, solver, steps in arms
    }


def _evaluate(task: str, folder: Path, n: int, seed: int, *, solver: str, steps: int) -> Any:
    from noiseworks.kits.policies.evaluation import episode_list, evaluate
    from noiseworks.kits.policies.native import NativePolicy
    from noiseworks.kits.policies.replanning import DiffusionPolicy

    env = MetaWorldBatch(min(n, 50), task)
    host = NativePolicy.from_pretrained(folder)
    policy = DiffusionPolicy(host, solver=solver, num_inference_steps=steps, num_envs=env.num_envs)
    return evaluate(policy, env, *episode_list([0], n, seed))


def _recipe(task: str) -> Recipe:
    return Recipe(
        prepare=partial(prepare, task),
        build=partial(build, POLICY, 1e-3),
        publish=publish,
        tune=partial(tune, task),
        measure=partial(measure, task),
        learning_rate=1e-3,
        batch_size=128,
        rows=ROWS,
        precision="bf16-mixed",
        about={
            "name": f"metaworld-{task}",
            "class": "NativePolicy",
            "about": f"A diffusion policy on Meta-World's {task}: a one-dimensional U-Net conditioned on two states.",
            "data": {"demonstrations": ROWS, "experts": "Meta-World's own, motion noise 0.1"},
        },
    )


RECIPES = {f"metaworld-{task}": _recipe(task) for task in TASKS}
