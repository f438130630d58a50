"""The claim: a policy tuned in dreams alone succeeds more often in the real maze than the one that imitates.

The world model is trained once, on play without a task; the policy and the classifier of success on each seed's few
poor demonstrations.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.diwa.policy import ChainPolicy
    from noiseworks.diwa.rewards import SuccessClassifier
    from noiseworks.diwa.training import Featurised
    from noiseworks.diwa.world_model import WorldModel

PACKAGE = "noiseworks.diwa"
LAYOUT, LIMIT, CHUNK = "umaze", 60, 4
PLAY, DEMOS, FIRST_EPISODE = "maze:umaze-navigate+random", "maze:umaze-medium", 400_000
BC_COEF = {"diwa": 0.05, "free": 0.0}


@dataclass
class Shared:
    """The world model, the featurised demonstrations, the imitating policy and the classifier."""

    model: "WorldModel"
    episodes: "Featurised"
    policy: "ChainPolicy"
    classifier: "SuccessClassifier"
    seed: int
    tuned: dict[str, Any] = field(default_factory=dict)


def prepare(seed: int, context: Context) -> Shared:
    """Load the world model that the package ships, or train one, then policy and classifier."""
    from noiseworks.bench import shipped
    from noiseworks.diwa.options import ModelFit, ModelSizes, PolicyFit, PolicySizes, RewardFit
    from noiseworks.diwa.training import featurise, fit_model, fit_policy, fit_reward
    from noiseworks.diwa.world_model import WorldModel
    from noiseworks.kits.rl.options import Recorded
    from noiseworks.kits.rl.sources import load_data

    sizes = context.settings
    if context.model is not None:
        model = WorldModel.from_pretrained(context.model)
    elif sizes["shipped"]:
        model = WorldModel.from_parts(*shipped.load(PACKAGE, "model"))
    else:
        play = load_data(Recorded(PLAY, sizes["play"], record_limit=LIMIT), needs="diwa")
        fitting = ModelFit(
            max_steps=sizes["fit"], batch_size=64, length=24, learning_rate=1e-3, seed=seed, device="cpu"
        )
        model = fit_model(play, ModelSizes(deter=64, groups=16, classes=8, width=64), fitting)
    demos = load_data(Recorded(DEMOS, 30 * LIMIT, (seed - 500) % 1000, LIMIT), needs="diwa")
    episodes = featurise(model, demos, seed)
    shape = PolicySizes(chunk=CHUNK, policy_width=128, denoising_steps=sizes["steps"])
    imitation = PolicyFit(
        max_steps=sizes["imitate"], batch_size=128, learning_rate=1e-3, seed=seed, device="cpu"
    )
    policy = fit_policy(episodes, shape, imitation)
    judging = RewardFit(sizes["epochs"], reward_rate=1e-3, reward_width=64, reward_seed=seed, held_out=0.0)
    return Shared(model, episodes, policy, fit_reward(model, episodes, judging)[0], seed)


def tuned(arm: str, shared: Shared, sizes: dict[str, Any]) -> tuple[Any, list[float], int]:
    """Return an arm's policy, whether each of its own dreams succeeds, and the dreamt steps of its tuning."""
    from noiseworks.diwa.latent_env import WorldDream
    from noiseworks.diwa.options import Dreaming, Tuning
    from noiseworks.diwa.training import dreamt_success, starts_of, tune

    dreaming = Dreaming(envs=sizes["dreams"], decisions=LIMIT // CHUNK, limit=LIMIT)
    options = Tuning(
        max_steps=sizes["rounds"] if arm != "bc" else 1,
        batch_size=200,
        tuned_steps=sizes["steps"] // 2,
        epochs=sizes["ppo_epochs"] if arm != "bc" else 1,
        actor_rate=3e-4,
        bc_coef=BC_COEF.get(arm, 0.0),
        critic_first=2,
        seed=shared.seed,
        device="cpu",
    )
    starts = starts_of(shared.episodes)
    dream = WorldDream(shared.model, shared.classifier, starts, dreaming.envs)
    policy, loop = tune(shared.policy, dream, dreaming, options, progress=False)
    judged = WorldDream(shared.model, shared.classifier, starts, sizes["episodes"])
    return (
        policy,
        dreamt_success(policy, judged, LIMIT, shared.seed).astype(float).tolist(),
        loop.stepper.steps,
    )


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: success of each real episode; of the arm `dream`, that of DiWA's own dreams."""
    from noiseworks.diwa.deployment import FilteredPolicy
    from noiseworks.kits.rl.options import World
    from noiseworks.kits.rl.sources import make_env
    from noiseworks.kits.rl.stepping import evaluate_returns

    sizes, own = dict(context.settings), "diwa" if arm == "dream" else arm
    env = make_env(World(f"maze:{LAYOUT}", LIMIT), sizes["episodes"], needs="diwa")
    if own not in shared.tuned:
        before = int(env.batch.steps.sum())
        shared.tuned[own] = (*tuned(own, shared, sizes), int(env.batch.steps.sum()) - before)
    policy, dreamt, steps, real_steps = shared.tuned[own]
    counted = {"dreamt_steps": float(steps), "real_steps": float(real_steps)}
    if arm == "dream":
        return Measurement(counted | {"success": dreamt})
    acting = FilteredPolicy(shared.model, policy, env.num_envs, shared.seed)
    first = FIRST_EPISODE + 1000 * (shared.seed % 1000)
    found = evaluate_returns(env, acting.act, env.num_envs, first, after=acting.after)
    success, lengths = (column.astype(float).tolist() for column in (found.success, found.lengths))
    return Measurement(counted | {"success": success, "length": lengths, "imagined": dreamt})


def sizes(
    model: tuple[int, int] | None, policy: tuple[int, int], epochs: int, tuning: tuple[int, int, int, int]
) -> dict[str, int]:
    """Return the settings of a scale; without sizes of a world model the shipped one is taken."""
    names = ("play", "fit", "imitate", "steps", "epochs", "dreams", "rounds", "ppo_epochs", "episodes")
    found = dict(zip(names, (*(model or (0, 0)), *policy, epochs, *tuning), strict=True))
    return found | {"shipped": model is None}


CLAIM = Claim(
    method="diwa",
    paper="DiWA: Diffusion Policy Adaptation with World Models (CoRL 2025, arXiv 2508.03645)",
    statement="A diffusion policy tuned inside a world model alone succeeds more often in the real environment.",
    testbed="maze",
    arms=(
        Arm("bc", "imitation", "baseline"),
        Arm("free", "DiWA without the term that keeps it near imitation", "baseline"),
        Arm("diwa", "DiWA", "method"),
        Arm("dream", "DiWA, in its own dreams", "reference"),
    ),
    targets=(
        at_least("success", "diwa", "bc", difference=0.15),
        no_worse("success", "diwa", "dream", by=0.15, name="success against that in dreams"),
        at_most("real_steps", "diwa", "bc", difference=0.0, guard=True),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes((400, 2), (2, 4), 1, (2, 1, 1, 2))),
        "quick": Scale((500,), 180, sizes(None, (100, 8), 10, (10, 4, 2, 20))),
        "laptop": Scale(tuple(range(1000, 1005)), 900, sizes(None, (600, 10), 40, (30, 100, 5, 100))),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor("bc", "success", 0.2, "imitation alone succeeds in only {:.0%}"),
        Ceiling("bc", "success", 0.8, "imitation alone succeeds in {:.0%}: little is left to gain"),
    ),
    units="episode",
    columns={
        "success": "success",
        "imagined": "success in dreams",
        "real_steps": "real steps of the tuning",
        "dreamt_steps": "dreamt steps",
        "length": "steps of an episode",
    },
)
