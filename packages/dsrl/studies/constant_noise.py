"""Play the claim's maze with one constant noise, which needs no learning: none at all, and one along each axis.

    python packages/dsrl/studies/constant_noise.py --seeds 1100 1101 1102 1103 1104

What a seed plays are the episodes that its claim is judged on.
"""

import argparse
from typing import Any

import torch
from noiseworks.dsrl import HostDecoder
from noiseworks.dsrl.claim import ENV, FIRST_EPISODE, MAX_STEPS, POLICY, STEPS
from noiseworks.kits.policies.hosts import load_host
from noiseworks.kits.rl.options import World
from noiseworks.kits.rl.sources import make_env
from noiseworks.kits.rl.stepping import evaluate_returns


def main(words: list[str] | None = None) -> None:
    """Print the share of episodes that each noise solves, over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args(words)
    decoder = HostDecoder(load_host(POLICY), STEPS)
    for noise in ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)):
        start = torch.tensor(noise).expand(decoder.noise_shape)

        def act(obs: Any, start: torch.Tensor = start) -> Any:
            return decoder.decode(obs, start.expand(len(obs), -1, -1)).numpy()

        solved = []
        for seed in options.seeds:
            env = make_env(World(ENV, MAX_STEPS), options.episodes, needs="dsrl", chunk=decoder.chunk)
            first = FIRST_EPISODE + 1000 * (seed % 1000)
            solved.append(evaluate_returns(env, act, options.episodes, first).success.mean())
        print(f"noise {noise[0]:+g} {noise[1]:+g}: {100 * sum(solved) / len(solved):.1f} %")


if __name__ == "__main__":
    main()
