"""Training recipes of the `tabletop` policies: data, module, publication and evaluation of each."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.bench.testbeds.tabletop.datasets import demonstrations
from noiseworks.bench.testbeds.tabletop.simulation import TabletopBatch
from noiseworks.bench.testbeds.tabletop.tasks import NUM_TASKS
from noiseworks.bench.testbeds.training import Captions, Recipe
from noiseworks.kits.policies.chunking import windows
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.normalizer import LinearNormalizer

if TYPE_CHECKING:
    import lightning as L

ROWS = 200 * NUM_TASKS  # demonstrations: the set `tabletop-m`
TUNING_SEED, CARD_SEED = 500, 700
UNET = PolicyConfig(network="unet", down_dims=(48, 96, 192), kernel_size=3, step_embed_dim=64)
# Narrower, so that all shipped weights stay small together.
SCALED_UNET = replace(UNET, down_dims=(32, 64, 128))
TRANSFORMER = PolicyConfig(network="transformer", n_layer=4, n_head=4, n_emb=128, p_drop_attn=0.0)
GRIPPER = 2  # the discrete dimension of an action
# What the gripper is divided by in `tabletop-unet-scaled`, so that diffusion decides it late.
GRIPPER_FACTOR = 10.0


def prepare(captions: Captions, rows: int | None, gripper_factor: float = 1.0) -> dict[str, torch.Tensor]:
    """Return training windows of demonstrations; there are no captions.

    Args:
        captions: Not used.
        rows: Demonstrations over all tasks.
        gripper_factor: What the gripper's +-1 are divided by.
    """
    spec = UNET.chunk
    # Episodes are short, so a policy replans in their last steps as well.
    data = windows(
        demonstrations(max(1, (rows or ROWS) // NUM_TASKS)), spec, pad_after=spec.horizon - spec.n_obs_steps
    )
    data["action"][..., GRIPPER] /= gripper_factor
    return data


def make_host(config: PolicyConfig, data: dict[str, torch.Tensor]) -> NativePolicy:
    """Return an untrained policy whose normalisers fit the data; the gripper passes through unchanged."""
    action = LinearNormalizer.fit(data["action"], identity_dims=(GRIPPER,))
    return NativePolicy(config, None, action, LinearNormalizer.fit(data["obs"]))


def publish(module: Any, folder: Path) -> None:
    """Write the averaged policy with half-precision weights."""
    module.averaged_host().save_pretrained(folder, dtype=torch.float16)


def tune(folder: Path, n: int) -> dict[str, float]:
    """Return the success on tuning seeds with 10 deterministic steps, which is quick."""
    report = _evaluate(folder, n, TUNING_SEED, solver="ddim", steps=10)
    return {"share_right": report.success_rate, "steps": float(report.steps.mean())}


def measure(folder: Path, n: int) -> dict[str, dict[str, float]]:
    """Return the card's figures on tuning seeds: success of the full sampler, of fewer steps and of chance."""
    figures = {}
    for name, solver, steps in (("100 DDPM steps", "ddpm", 100), ("10 DDIM steps", "ddim", 10)):
        report = _evaluate(folder, n, CARD_SEED, solver=solver, steps=steps)
        figures[f"success, {name}"] = _figure(report)
        if solver == "ddpm":
            full = report
    disturbed = _evaluate(folder, n, CARD_SEED, solver="ddim", steps=10, disturb=True)
    figures["success, 10 DDIM steps, disturbed"] = _figure(disturbed)
    for task, row in full.by_task().items():
        figures[f"success, 100 DDPM steps, task {task}"] = {
            "value": row["success"],
            "low": row["low"],
            "high": row["high"],
            "n": row["n"],
        }
    return figures


def _figure(report: Any) -> dict[str, float]:
    low, high = report.interval
    values = {"value": report.success_rate, "low": low, "high": high}
    return {key: round(value, 4) for key, value in values.items()} | {"n": len(report.success)}


def _evaluate(folder: Path, n: int, seed: int, *, solver: str, steps: int, disturb: bool = False) -> Any:
    from noiseworks.kits.policies.evaluation import episode_list, evaluate
    from noiseworks.kits.policies.replanning import DiffusionPolicy

    # All episodes at once, so that they replan together.
    env = TabletopBatch(min(600, n), disturb=disturb)
    host = NativePolicy.from_pretrained(folder)
    policy = DiffusionPolicy(host, solver=solver, num_inference_steps=steps, num_envs=env.num_envs)
    tasks, seeds = episode_list(np.arange(NUM_TASKS), max(1, n // NUM_TASKS), seed)
    return evaluate(policy, env, tasks, seeds)


def build(config: PolicyConfig, rate: float, data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the module that trains an untrained policy; the budget sets the rate along the run."""
    from noiseworks.bench.testbeds.tabletop.training import MuonPolicyTrainer, balanced_weights
    from noiseworks.kits.policies.training import PolicyTrainer

    host = make_host(config, data)
    if config.network == "transformer":
        return MuonPolicyTrainer(host, learning_rate=rate)
    weights = balanced_weights(host.scheduler.alphas_cumprod)
    return PolicyTrainer(host, learning_rate=rate, warmup_steps=0, loss_weights=weights)


def _recipe(
    name: str, config: PolicyConfig, rate: float, precision: str, about: str, gripper_factor: float = 1.0
) -> Recipe:
    scaled = {} if gripper_factor == 1 else {"gripper divided by": gripper_factor}
    return Recipe(
        # Processes are sent the recipe, so no closures.
        prepare=partial(prepare, gripper_factor=gripper_factor),
        build=partial(build, config, rate),
        publish=publish,
        tune=tune,
        measure=measure,
        learning_rate=rate,
        batch_size=128,
        rows=ROWS,
        precision=precision,
        about={
            "name": name,
            "class": "NativePolicy",
            "about": about,
            "data": {"demonstrations": ROWS, "experts": "two-sided, action noise 0.1", **scaled},
        },
    )


RECIPES = {
    "tabletop-unet": _recipe(
        "tabletop-unet",
        UNET,
        1e-3,
        "bf16-mixed",
        "A diffusion policy on the 12 tasks of `tabletop`: a one-dimensional U-Net conditioned on two states "
        "and the task.",
    ),
    "tabletop-transformer": _recipe(
        "tabletop-transformer",
        TRANSFORMER,
        2e-3,
        "32-true",
        "A diffusion policy on the 12 tasks of `tabletop`: a causal transformer conditioned on two states and "
        "the task.",
    ),
    "tabletop-unet-scaled": _recipe(
        "tabletop-unet-scaled",
        SCALED_UNET,
        1e-3,
        "bf16-mixed",
        "A narrower `tabletop-unet` trained on actions whose gripper is +-0.1: its sign, which is all that the "
        "table reads, is then decided in the last diffusion steps.",
        GRIPPER_FACTOR,
    ),
}
