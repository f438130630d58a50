"""Recorded behaviour, made on demand from a seed and checked against stored hashes, and the references of scores."""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
from noiseworks.bench.testbeds.maze.behaviours import BEHAVIOURS, Behaviour, BehaviourName
from noiseworks.bench.testbeds.maze.layouts import Layout, make_layout
from noiseworks.bench.testbeds.maze.simulation import MazeBatch, RewardMode
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.rl.transitions import Transitions, concatenate

# Seeds of recorded episodes start here, far from those of evaluations.
FIRST_SEED = 1 << 32
MIXTURES: dict[str, tuple[BehaviourName, ...]] = {"replay": ("random", "medium", "navigate")}
ROWS = 256
_FACTS = Path(__file__).with_name("references.json")


def record(
    layout: str | Layout,
    behaviour: str,
    steps: int = 100_000,
    seed: int = 0,
    *,
    reward: RewardMode = "sparse",
    max_steps: int | None = None,
) -> Transitions:
    """Return steps of a scripted behaviour; of the last episode only what fits.

    Args:
        layout: Name or layout.
        behaviour: A name of `behaviours.Behaviour`, or `replay`: a third each of random, medium and navigate.
        steps: How many, at least 1.
        seed: Which episodes, 0 to 999.
        reward: Reward mode.
        max_steps: Limit of steps of an episode; the layout's own by default.

    Raises:
        InputError: When a name is unknown or a number is out of range.
    """
    check_choice("behaviour", behaviour, (*BEHAVIOURS, *MIXTURES))
    check_number("steps", steps, low=1, integer=True)
    check_number("seed", seed, low=0, high=999, integer=True)
    layout = make_layout(layout)
    about = {
        "testbed": "maze",
        "layout": layout.name,
        "behaviour": behaviour,
        "seed": seed,
        "reward": reward,
        "max_steps": layout.max_steps if max_steps is None else max_steps,
    }
    parts = MIXTURES.get(behaviour, (behaviour,))
    shares = [steps // len(parts) + (i < steps % len(parts)) for i in range(len(parts))]
    recorded = [
        _roll_out(layout, part, share, seed, reward, max_steps)
        for part, share in zip(parts, shares, strict=True)
        if share
    ]
    return concatenate(recorded, about)


def _roll_out(
    layout: Layout, name: BehaviourName, steps: int, seed: int, reward: RewardMode, max_steps: int | None
) -> Transitions:
    """Record whole episodes, a batch of them at a time, until there are enough steps."""
    longest = layout.max_steps if max_steps is None else max_steps
    rows = min(ROWS, -(-steps // longest))
    env = MazeBatch(rows, layout, reward=reward, max_steps=max_steps)
    number = BEHAVIOURS.index(name)
    first = FIRST_SEED + ((seed * len(BEHAVIOURS) + number) << 24)
    parts, found = [], 0
    while found < steps:
        seeds = first + len(parts) * rows + np.arange(rows)
        env.reset(np.arange(rows), np.zeros(rows, np.int64), seeds)
        parts.append(_batch(env, Behaviour(name, env, seed + 1000 * len(parts)), steps - found))
        found += len(parts[-1])
    return concatenate(parts)


def _batch(env: MazeBatch, behaviour: Behaviour, limit: int) -> Transitions:
    """Return one episode of every maze, cut after `limit` steps in all."""
    columns: list[tuple[np.ndarray, ...]] = []
    lengths, live = np.zeros(env.num_envs, np.int64), np.ones(env.num_envs, bool)
    seen = env.observe()["obs"]
    while live.any():
        actions = behaviour.act().astype(np.float32)
        result, before = env.step(actions), seen
        seen = env.observe()["obs"]
        columns.append((before, actions, result.reward, seen, result.terminated, result.truncated))
        lengths += live
        live &= ~(result.terminated | result.truncated)
    keep = (np.arange(len(columns)) < lengths[:, None]).reshape(-1)
    arrays = [
        np.stack(column, 1).reshape(keep.size, *column[0].shape[1:])[keep][:limit]
        for column in zip(*columns, strict=True)
    ]
    arrays[5][-1] |= ~arrays[4][-1]
    return Transitions(*arrays)


def fingerprint(transitions: Transitions) -> str:
    """Return a SHA-256 of transitions with values rounded to 1e-4, so that it is the same on every machine."""
    digest = hashlib.sha256()
    for array in transitions.arrays().values():
        digest.update(np.round(array.astype(np.float64) * 1e4).astype(np.int32).tobytes())
    return digest.hexdigest()


def load(name: str) -> Transitions:
    """Return a named data set of 10,000 steps with sparse rewards, made anew.

    Args:
        name: `<layout>-<behaviour>`, such as `umaze-medium`.

    Raises:
        InputError: When the name is unknown.
        ArtifactError: When the result differs from the one that this release was measured on.
    """
    hashes = _facts()["hashes"]
    check_choice("name", name, tuple(hashes))
    layout, _, behaviour = name.partition("-")
    transitions = record(layout, behaviour, 10_000)
    if (found := fingerprint(transitions)) != hashes[name]:
        raise ArtifactError(f"{name} came out with hash {found[:12]}, expected {hashes[name][:12]}")
    return transitions


@cache
def _facts() -> dict:
    return json.loads(_FACTS.read_text())


def references(
    layout: str, reward: RewardMode = "sparse", max_steps: int | None = None
) -> tuple[float, float]:
    """Return the mean returns of the random policy and of the noiseless expert, which normalise scores.

    Args:
        layout: Name of a layout.
        reward: `sparse` or `step_cost`.
        max_steps: Limit of steps that the returns are for; only `fork` with step costs has others than its own.

    Raises:
        InputError: When nothing was measured for it.
    """
    layout = make_layout(layout)
    table = _facts()["returns"]
    key = f"{layout.name} {reward}"
    if layout.name == "fork" and reward == "step_cost" and max_steps is not None:
        check_number("max_steps", max_steps, low=60, integer=True)
        # Random actions never arrive there, and the expert always does before the limit.
        return -float(max_steps), table[key]["expert"][0]
    if key not in table or max_steps not in (None, layout.max_steps):
        raise InputError(
            f"no reference returns for {layout.name} with {reward} rewards and {max_steps} steps; measured are "
            f"{', '.join(table)} with the layouts' own limits: measure the random policy and the expert yourself"
        )
    return table[key]["random"][0], table[key]["expert"][0]


def measure_returns(
    layout: str, behaviour: BehaviourName, episodes: int, seed: int, *, reward: RewardMode, noise: bool = True
) -> np.ndarray:
    """Return the returns of a behaviour's episodes, float64 [episodes]."""
    env = MazeBatch(episodes, layout, reward=reward)
    env.reset(np.arange(episodes), np.zeros(episodes, np.int64), seed + np.arange(episodes))
    policy = Behaviour(behaviour, env, seed, noise=noise)
    total, live = np.zeros(episodes), np.ones(episodes, bool)
    while live.any():
        result = env.step(policy.act())
        total += result.reward * live
        live &= ~(result.terminated | result.truncated)
    return total
