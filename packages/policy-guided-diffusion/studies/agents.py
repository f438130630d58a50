"""Score agents that learn from real transitions, from samples of the shipped trajectory model, and from guided ones.

    python packages/policy-guided-diffusion/studies/agents.py --seeds 100 --out agents

The claim's maze and data. Every agent is evaluated on the same episodes, so that differences are paired; their 95 %
intervals come from a bootstrap over episodes. Runs keep checkpoints: the same command goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

from noiseworks.bench import shipped
from noiseworks.bench.testbeds.maze import record, references
from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
from noiseworks.kits.rl.scores import mean_interval
from noiseworks.kits.rl.stepping import evaluate_returns
from noiseworks.kits.training import open_run
from noiseworks.policy_guided_diffusion import (
    Architecture,
    Guidance,
    Sampling,
    TrajectoryDiffusion,
    train_agent,
)
from noiseworks.policy_guided_diffusion.claim import BEHAVIOUR, COEFFICIENT, DATA_SEED, LAYOUT
from noiseworks.policy_guided_diffusion.options import Agent, Replay

STEPS, FEATURES = 50_000, 48  # of the data, and of the shipped network
MODES = ("real", "unguided", "guided")
# What offline learners on mazes are given (section 4 of IQL's appendix): optimistic values, greedy actions.
SETTINGS = {"iql": {"expectile": 0.9, "beta": 10.0}, "td3bc": {}}


def shipped_model(obs_dim: int, action_dim: int) -> TrajectoryDiffusion:
    """Return the trajectory model that the package ships for its claim."""
    model = TrajectoryDiffusion(obs_dim, action_dim, Architecture(horizon=16, features=FEATURES))
    model.load_state_dict(shipped.load("noiseworks.policy_guided_diffusion", "model")[1])
    return model.eval().requires_grad_(False)


def main() -> None:
    """Train, evaluate and print a row for each agent and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--agents", nargs="+", default=["iql", "td3bc"])
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    data = record(LAYOUT, BEHAVIOUR, STEPS, DATA_SEED)
    model = shipped_model(data.obs_dim, data.action_dim)
    returns = references(LAYOUT)
    replay = Replay(pool=chosen.pool, refresh_every=chosen.updates // 2, batch_size=128)
    for seed in chosen.seeds:
        for name in chosen.agents:
            scores = {}
            for mode in MODES:
                agent = Agent(
                    name,
                    mode,
                    chosen.updates,
                    chosen.hidden,
                    agent_seed=seed,
                    checkpoint_every=0.5,
                    **SETTINGS[name],
                )
                with open_run(
                    chosen.out / f"{name}-{mode}-{seed}", {"agent": agent, "replay": replay}
                ) as run:
                    learner = train_agent(
                        data,
                        agent,
                        model,
                        replay,
                        Guidance(coefficient=COEFFICIENT),
                        Sampling(steps=chosen.steps),
                        run=run,
                    )
                env = MazeVectorEnv(min(chosen.episodes, 100), LAYOUT)
                found = evaluate_returns(env, learner.policy(), chosen.episodes, 1000 * seed)
                scores[mode] = found.scores(*returns)
            row = {mode: round(float(values.mean()), 1) for mode, values in scores.items()}
            for other in ("unguided", "real"):
                figures = mean_interval(scores["guided"] - scores[other])
                row |= {f"guided - {other}": [round(value, 1) for value in figures]}
            print(json.dumps({"agent": name, "seed": seed} | row), flush=True)


if __name__ == "__main__":
    main()
