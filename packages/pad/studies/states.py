"""How many demonstrations of the table's tasks a policy on true states takes: an image policy needs as many.

    python packages/pad/studies/states.py --tasks 6 7 --demonstrations 10 20 50

A small diffusion network sees the states and predicts the poses of the next 12 steps relative to the present one; the
planner of `noiseworks.pad` follows four of them, then plans again. Printed are its success in new scenes of each task
and, as a check of the whole loop, in the scenes of its own demonstrations.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.bench.testbeds.tabletop import SPEED, TabletopBatch, demonstrations
from noiseworks.bench.testbeds.tabletop.datasets import FIRST_SEED
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.training import Average, warm_decay
from noiseworks.pad.data import reached_poses
from noiseworks.pad.policy import PosePlanner
from torch import Tensor, nn

POSES, EXECUTED, POSE_DIM, STEPS, CALLS = 12, 4, 3, 1000, 10
SEED, NEW_SCENES = 20, 100_000  # of the demonstrations, and of the first new scene


class Denoiser(nn.Module):
    """States [B, D], noisy poses [B, 36] and timesteps [B] -> clean poses."""

    def __init__(self, states: int, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(states + POSES * POSE_DIM + 32, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, POSES * POSE_DIM)

    def forward(self, states: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the clean poses [B, 36], scaled."""
        angles = t[:, None] * torch.exp(torch.linspace(0, -8, 16))
        x = F.silu(self.first(torch.cat((states, noisy, angles.sin(), angles.cos()), dim=1)))
        for layer in self.inner:
            x = x + F.silu(layer(x))
        return self.last(x)


class Scale:
    """Maps columns to [-1, 1]; those that never change are left out."""

    def __init__(self, values: Tensor) -> None:
        low, high = values.amin(0), values.amax(0)
        self.middle, self.half = (low + high) / 2, (high - low).clamp(min=1e-3) / 2
        self.kept = high - low > 1e-3

    def __call__(self, values: Tensor) -> Tensor:
        """Return scaled values [B, columns that change], at most 3 beyond the data's range."""
        return ((values - self.middle) / self.half)[:, self.kept].clamp(-3, 3)


def windows(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Return states [W, D] and the relative poses that follow them, [W, 36]; past an end its last pose repeats."""
    poses, states, futures, first = reached_poses(episodes, SPEED), [], [], 0
    for number, end in enumerate(episodes.ends.tolist()):
        own = poses[first + number : end + number + 1]
        steps = np.arange(end - first)[:, None] + np.arange(1, POSES + 1)
        futures.append(own[np.minimum(steps, end - first)] - own[:-1, None])
        states.append(episodes.obs[first:end])
        first = end
    return torch.from_numpy(np.concatenate(states)), torch.from_numpy(np.concatenate(futures)).flatten(1)


class Policy:
    """A trained network with its scales.

    Args:
        states: Of the windows.
        futures: What followed.
        updates: Optimiser steps, each on 128 windows.
    """

    def __init__(self, states: Tensor, futures: Tensor, updates: int) -> None:
        self.seen, self.moved = Scale(states), Scale(futures)
        self.moved.kept[:] = True
        self.bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS), 0)
        torch.manual_seed(0)
        net = Denoiser(int(self.seen.kept.sum()))
        average, optimizer = (
            Average(net, warm_decay(0.998)),
            torch.optim.AdamW(net.parameters(), weight_decay=1e-3),
        )
        x, y = self.seen(states), self.moved(futures)
        for step in range(updates):
            optimizer.param_groups[0]["lr"] = (
                2e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / updates))
            )
            rows, t = torch.randint(len(x), (128,)), torch.randint(STEPS, (128,))
            bar = self.bars[t, None]
            noisy = bar.sqrt() * y[rows] + (1 - bar).sqrt() * torch.randn_like(y[rows])
            optimizer.zero_grad()
            (net(x[rows], noisy, t) - y[rows]).square().mean().backward()
            optimizer.step()
            average.update(net)
        self.net = average.model

    @torch.no_grad()
    def plan(self, states: Tensor) -> Tensor:
        """Return relative poses [B, 12, 3] of states [B, D], by deterministic denoising."""
        x, z = self.seen(states), torch.randn(len(states), POSES * POSE_DIM)
        grid = torch.linspace(STEPS - 1, 0, CALLS).round().long()
        for t, bar, after in zip(
            grid, self.bars[grid], [*self.bars[grid[1:]], torch.tensor(1.0)], strict=True
        ):
            clean = self.net(x, z, t.expand(len(x))).clamp(-1, 1)
            z = after.sqrt() * clean + (1 - after).sqrt() * (z - bar.sqrt() * clean) / (1 - bar).sqrt()
        return (z * self.moved.half + self.moved.middle).unflatten(1, (POSES, POSE_DIM))


def solved(policy: Policy, tasks: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return which scenes a policy solves, bool [N]."""
    env, planner, done = TabletopBatch(len(tasks)), PosePlanner(), np.zeros(len(tasks), bool)
    env.reset(np.arange(len(tasks)), tasks, seeds)
    for step in range(env.max_steps):
        states = torch.from_numpy(env.observe()["obs"])
        if step % EXECUTED == 0:
            targets = states[:, None, :POSE_DIM] + policy.plan(states)
        done |= env.step(planner.act(states[:, :POSE_DIM], targets[:, step % EXECUTED]).numpy()).terminated
    return done


def main() -> None:
    """Train, evaluate and print a row for each number of demonstrations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[6, 7])
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--scenes", type=int, default=50)
    chosen = parser.parse_args()
    for count in chosen.demonstrations:
        begin = time.process_time()
        policy = Policy(*windows(demonstrations(count, SEED, tasks=tuple(chosen.tasks))), chosen.updates)
        row = {"demonstrations": count, "seconds": round(time.process_time() - begin)}
        for name, first, scenes in (
            ("new", NEW_SCENES, chosen.scenes),
            ("own", FIRST_SEED + (SEED << 20), min(count, chosen.scenes)),
        ):
            tasks, seeds = (
                np.repeat(chosen.tasks, scenes),
                np.tile(first + np.arange(scenes), len(chosen.tasks)),
            )
            found = solved(policy, tasks, seeds)
            row[name] = {task: round(float(found[tasks == task].mean()), 2) for task in chosen.tasks}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
