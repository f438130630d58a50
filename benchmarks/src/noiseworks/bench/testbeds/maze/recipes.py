"""Training recipes of the diffusion policies on `fork`, which imitate both routes."""

from functools import partial
from pathlib import Path

import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.maze.datasets import record
from noiseworks.bench.testbeds.maze.simulation import ACTION_DIM, STATE_DIM, MazeBatch
from noiseworks.bench.testbeds.tabletop.recipes import publish
from noiseworks.bench.testbeds.training import Captions, Recipe
from noiseworks.kits.policies.chunking import Episodes, windows
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.training import PolicyTrainer

STEPS = 20_000  # recorded
TUNING_SEED = 500
POLICY = PolicyConfig(
    network="unet",
    obs_dim=STATE_DIM,
    action_dim=ACTION_DIM,
    horizon=4,
    n_obs_steps=1,
    n_action_steps=4,
    num_train_timesteps=20,
    down_dims=(32, 64),
    kernel_size=3,
    step_embed_dim=32,
)
# Behaviour -> the limit of steps under which it is measured: 66 only lets the short route of `routes` arrive.
LIMITS = {"routes": 66, "routes-slow": 150}


def prepare(behaviour: str, captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return training windows of recorded steps; there are no captions."""
    data = record("fork", behaviour, rows or STEPS, reward="step_cost", max_steps=LIMITS["routes-slow"])
    tasks = torch.zeros(len(data.ends), dtype=torch.int64).numpy()
    episodes = Episodes(data.observations, data.actions, data.ends, tasks)
    return windows(episodes, POLICY.chunk, pad_after=POLICY.horizon - POLICY.n_obs_steps)


def build(data: dict[str, torch.Tensor]) -> PolicyTrainer:
    """Return the module that trains an untrained policy; the budget sets the rate along the run."""
    host = NativePolicy(POLICY, None, LinearNormalizer.fit(data["action"]), LinearNormalizer.fit(data["obs"]))
    return PolicyTrainer(host, learning_rate=1e-3, warmup_steps=0)


def tune(behaviour: str, folder: Path, n: int) -> dict[str, float]:
    """Return how near the success on tuning seeds is to the data's own, which takes either route half of the time."""
    report = roll_out(folder, behaviour, n, TUNING_SEED, 100 if behaviour == "routes" else 200)
    return {"share_right": report.success_rate, "steps": float(report.steps.mean())}


def measure(behaviour: str, folder: Path, n: int) -> dict[str, Figure]:
    """Return the card's figures on tuning seeds: success within and without the limit, and steps to the goal."""
    free = roll_out(folder, behaviour, n, CARD_SEED, 2 * LIMITS["routes-slow"])
    limit = LIMITS[behaviour]
    found = {f"success within {limit} steps": figure((free.success & (free.steps <= limit)).astype(float))}
    return found | {"success": figure(free.success.astype(float)), "steps": figure(free.steps.astype(float))}


def roll_out(folder: Path, behaviour: str, n: int, seed: int, max_steps: int) -> EvaluationReport:
    """Run episodes with 5 deterministic steps."""
    env = MazeBatch(min(n, 200), "fork", reward="step_cost", max_steps=max_steps)
    host = NativePolicy.from_pretrained(folder)
    policy = DiffusionPolicy(host, solver="ddim", num_inference_steps=5, num_envs=env.num_envs)
    return evaluate(policy, env, *episode_list([0], n, seed))


def _recipe(behaviour: str) -> Recipe:
    name = f"maze-{behaviour}"
    return Recipe(
        prepare=partial(prepare, behaviour),
        build=build,
        publish=publish,
        tune=partial(tune, behaviour),
        measure=partial(measure, behaviour),
        learning_rate=1e-3,
        batch_size=128,
        rows=STEPS,
        about={
            "name": name,
            "class": "NativePolicy",
            "about": f"A diffusion policy that imitates `{behaviour}` on `fork` in chunks of four actions.",
            "data": {"steps": STEPS, "behaviour": behaviour},
        },
    )


RECIPES = {f"maze-{behaviour}": _recipe(behaviour) for behaviour in LIMITS}
