"""The claim: choosing the noise of a frozen policy makes it solve what it solved half of the time.

On the maze's fork: a policy that imitates a short and a long way equally often, with a limit that only the short
way keeps. All arms decide about the same number of chunks, and are evaluated on the same episodes.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.dsrl.hosts import HostDecoder
    from noiseworks.dsrl.steering import BestOfPolicy, SteeredPolicy
    from stable_baselines3 import SAC

POLICY, ENV, MAX_STEPS, STEPS = "testbed:maze-routes", "maze:fork", 70, 5
FIRST_EPISODE, CANDIDATES = 100_000, 16


@dataclass
class Shared:
    """The frozen policy, the seed, and the learners and their environment steps by variant."""

    decoder: "HostDecoder"
    seed: int
    learned: "dict[str, tuple[SAC, int]]" = field(default_factory=dict)


def prepare(seed: int, context: Context) -> Shared:
    """Load the frozen policy."""
    from noiseworks.dsrl.hosts import HostDecoder
    from noiseworks.kits.policies.hosts import load_host

    return Shared(HostDecoder(load_host(context.model or POLICY), STEPS), seed)


def policy_of(arm: str, shared: Shared, context: Context) -> "tuple[SteeredPolicy | BestOfPolicy, int]":
    """Return an arm's policy and the environment steps that it took to learn."""
    from noiseworks.bench import shipped
    from noiseworks.dsrl import training
    from noiseworks.dsrl.options import Decoding, Learning
    from noiseworks.dsrl.steering import BestOfPolicy, SteeredPolicy, steered
    from noiseworks.kits.rl.options import World

    sizes, seed, decoding = context.settings, shared.seed, Decoding(steps=STEPS)
    if arm == "frozen":
        return SteeredPolicy(shared.decoder, decoding=decoding, seed=seed), 0
    variant = "sac" if arm == "sac" else "na"
    learning = Learning(
        variant=variant,
        decisions=sizes["decisions"],
        warmup=sizes["warmup"],
        utd=sizes["utd"],
        noise_critic_steps=max(1, sizes["utd"] // 4),  # half of the default ratio: decoding is what costs
        batch_size=64,
        hidden=sizes["hidden"],
        layers=2,
        learning_rate=1e-3,
        seed=seed,
    )
    if variant not in shared.learned:
        world = World(ENV, MAX_STEPS)
        learner, steps = training.train(shared.decoder, world, decoding, learning)
        shipped.save(context.folder, variant, {"steps": steps}, learner.actor.state_dict())
        shared.learned[variant] = learner, steps
    learner, steps = shared.learned[variant]
    if arm == "best_of":
        return BestOfPolicy(learner, CANDIDATES, seed), steps
    return steered(learner, seed=seed), steps


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: success and return of each episode."""
    from noiseworks.dsrl import training
    from noiseworks.dsrl.options import Evaluation
    from noiseworks.kits.rl.options import World

    policy, steps = policy_of(arm, shared, context)
    episodes = context.settings["episodes"]
    first = FIRST_EPISODE + 1000 * (shared.seed % 1000)
    found = training.evaluate(
        policy, World(ENV, MAX_STEPS), Evaluation(episodes, episodes, evaluation_seed=first)
    )
    metrics = {"success": found.success.astype(float).tolist(), "return": found.returns.tolist()}
    return Measurement(metrics | {"steps": float(steps)})


def sizes(decisions: int, warmup: int, utd: int, hidden: int, episodes: int) -> dict[str, int]:
    """Return the settings of a scale."""
    return {"decisions": decisions, "warmup": warmup, "utd": utd, "hidden": hidden, "episodes": episodes}


CLAIM = Claim(
    method="dsrl",
    paper="Steering Your Diffusion Policy with Latent Space Reinforcement Learning (CoRL 2025, arXiv 2506.15799)",
    statement="Reinforcement learning over the noise of a frozen diffusion policy raises its success.",
    testbed="maze",
    arms=(
        Arm("frozen", "frozen policy", "baseline"),
        Arm("best_of", "best of 16 by DSRL-NA's critic", "baseline"),
        Arm("sac", "DSRL-SAC", "method"),
        Arm("na", "DSRL-NA", "method"),
    ),
    targets=(
        at_least("success", "na", "frozen", difference=0.3),
        no_worse("success", "na", "sac", by=0.05, name="success against DSRL-SAC"),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes(12, 4, 1, 8, 4)),
        "quick": Scale((500,), 180, sizes(60, 20, 1, 32, 16)),
        "laptop": Scale((1100, 1101, 1102, 1103, 1104), 3000, sizes(1600, 400, 20, 64, 100)),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "frozen", "success", 0.2, "the frozen policy solves only {:.0%}: there is nothing to choose from"
        ),
        Ceiling("frozen", "success", 0.8, "the frozen policy solves {:.0%} already"),
    ),
    units="episode",
    columns={"success": "success", "return": "return", "steps": "environment steps"},
    version=3,
)
