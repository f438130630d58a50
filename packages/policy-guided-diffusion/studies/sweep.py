"""Likelihood and dynamics error of guided samples over coefficients, for three target policies on the claim's maze.

    python packages/policy-guided-diffusion/studies/sweep.py --seed 100

The policies are an untrained actor, a clone of the data's behaviour and the maze's scripted expert, each as a normal
distribution of deviation 0.3. Every coefficient gets the same noise, so that its gain over none is paired; the 95 %
interval is a bootstrap's over trajectories. Trajectories come from the model that the package ships.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from agents import STEPS, shipped_model
from noiseworks.bench.testbeds.maze import advance, make_layout, record
from noiseworks.kits.rl.scores import mean_interval
from noiseworks.policy_guided_diffusion import (
    Guidance,
    Sampling,
    dynamics_error,
    log_likelihood,
    train_agent,
)
from noiseworks.policy_guided_diffusion.agents import make_agent
from noiseworks.policy_guided_diffusion.claim import BEHAVIOUR, DATA_SEED, LAYOUT, POLICY_STD, Expert, inside
from noiseworks.policy_guided_diffusion.options import Agent, Replay
from noiseworks.policy_guided_diffusion.policies import gaussian
from torch import Tensor


class Near:
    """A normal distribution around a mean action.

    Args:
        mean: Observations [..., Do] -> actions [..., Da].
    """

    def __init__(self, mean: Callable[[Tensor], Tensor]) -> None:
        self.log_prob = gaussian(mean, POLICY_STD)


def main() -> None:
    """Sample, measure and print a row for each policy and coefficient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--trajectories", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--updates", type=int, default=2000)
    chosen = parser.parse_args()
    data, layout = record(LAYOUT, BEHAVIOUR, STEPS, DATA_SEED), make_layout(LAYOUT)
    model = shipped_model(data.obs_dim, data.action_dim)
    cloning = Agent("td3bc", "real", chosen.updates, 64, alpha=0.0, agent_seed=chosen.seed)
    policies = {
        "untrained": Near(make_agent(data, cloning).act),
        "clone": Near(train_agent(data, cloning, replay=Replay(batch_size=128)).act),
        "expert": Near(Expert(layout).mean),
    }

    def law(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        return advance(layout.walls, inside(layout, obs), action)

    for name, policy in policies.items():
        free: tuple[np.ndarray, float] | None = None
        for coefficient in chosen.coefficients:
            guidance, sampling = Guidance(coefficient=coefficient), Sampling(steps=chosen.steps)
            made = model.sample(chosen.trajectories, policy, guidance, sampling, seed=chosen.seed)
            likely = log_likelihood(made, policy.log_prob).numpy()
            error = float(dynamics_error(made, law).mean())
            free = free or (likely, error)
            gain = [round(value, 2) for value in mean_interval(likely - free[0])]
            row = {
                "policy": name,
                "coefficient": coefficient,
                "log_likelihood": round(float(likely.mean()), 2),
            }
            print(json.dumps(row | {"gain": gain, "error": round(error / free[1], 2)}), flush=True)


if __name__ == "__main__":
    main()
