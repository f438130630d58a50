"""Time the mazes: steps a second of one core, for vectors of several sizes.

    python benchmarks/benchmarks/maze_speed.py --layout medium --environments 1 64 1024

Each vector is the Gymnasium environment, rewards, ends and new episodes included, under uniformly random actions that
are drawn before. The best processor time of some turns is printed as JSON; processor time does not grow while other
work waits for the same core.
"""

import argparse
import json
import time

import numpy as np
from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv


def steps_a_second(layout: str, environments: int, steps: int, turns: int) -> float:
    """Return the most steps a second, over all environments, of a few turns."""
    env = MazeVectorEnv(environments, layout)
    env.reset(seed=0)
    pushes = np.random.default_rng(0).uniform(-1, 1, (steps, environments, 2))
    best = float("inf")
    for _ in range(turns):
        begin = time.process_time()
        for push in pushes:
            env.step(push)
        best = min(best, time.process_time() - begin)
    return steps * environments / best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", default="medium")
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    found = {
        n: round(steps_a_second(chosen.layout, n, chosen.steps, chosen.turns)) for n in chosen.environments
    }
    print(json.dumps({"layout": chosen.layout, "steps_a_second": found}, indent=2))


if __name__ == "__main__":
    main()
