"""What drawing all branches of all groups in one batch saves over a loop over branches, and over one group at a time.

    python packages/b2-diffurl/studies/rollouts.py --model testbed:shapes

Everything runs in one process, turn by turn, on the same start and step seeds; what is printed are the greatest
difference of the finished latents and the ratios of medians of seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from noiseworks.kits.diffusers_hosts import load_pipeline, sample_generators, tiny_pipeline
from noiseworks.kits.image_tuning import Policy, Rollout
from torch import Tensor


def looped(
    policy: Policy, ids: Tensor, starts: list[int], seeds: list[int], branches: int, place: int
) -> Tensor:
    """Return finished latents [G branches, ...], with the common steps drawn once and branch after branch behind."""
    x = policy.first_latents(starts)
    stem, _ = policy.walk(x, ids, sample_generators([start ^ 1 for start in starts]), 0, place)
    begin = stem[:, -1].to(x.device) if place else x
    ends = [
        policy.walk(begin, ids, sample_generators(seeds[branch::branches]), place)[0][:, -1]
        for branch in range(branches)
    ]
    return torch.stack(ends, 1).flatten(0, 1)


def singly(
    policy: Policy, ids: Tensor, starts: list[int], seeds: list[int], branches: int, place: int
) -> Tensor:
    """Return the same, every group by itself."""
    return torch.cat(
        [
            looped(
                policy,
                ids[i : i + 1],
                starts[i : i + 1],
                seeds[i * branches : (i + 1) * branches],
                branches,
                place,
            )
            for i in range(len(ids))
        ]
    )


def seconds(turns: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each turn."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            begin = time.perf_counter()
            turn()
            found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--branches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--trained", default="14,17,20")
    parser.add_argument("--repeats", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    pipe = tiny_pipeline("sd") if words.model == "tiny" else load_pipeline(words.model)
    rollout = Rollout(
        words.steps, guidance_scale=words.guidance_scale, rollout_batch=words.groups * words.branches
    )
    policy = Policy(pipe, ["a red circle", "a blue square"], rollout)
    ids = torch.arange(words.groups) % 2
    starts = list(range(words.groups))
    seeds = list(range(100, 100 + words.groups * words.branches))
    print("trained steps   difference   loop over branches   one group at a time")
    for trained in map(int, words.trained.split(",")):
        given = (policy, ids, starts, seeds, words.branches, words.steps - trained)
        batched = policy.branch_out(*given[1:]).latents[:, -1]
        difference = float((looped(*given) - batched).abs().max())
        found = seconds(
            {
                "batched": lambda given=given: policy.branch_out(*given[1:]),
                "looped": lambda given=given: looped(*given),
                "singly": lambda given=given: singly(*given),
            },
            words.repeats,
        )
        loop, single = (found[name] / found["batched"] for name in ("looped", "singly"))
        print(f"{trained:13}   {difference:10.1e}   {loop:18.2f}   {single:19.2f}", flush=True)


if __name__ == "__main__":
    main()
