"""The claim: edited actions close the gap from imitation to the expert, which choosing among actions cannot.

On the maze's fork: recorded behaviour that takes a short and a long way equally often and pushes at most 0.4 as hard as
it could. Choosing finds the short way; only edits find out that one can push harder. All arms act in equally many
episodes and learn from equally many batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Ceiling, Claim, Context, Measurement, Scale, at_least, no_worse

if TYPE_CHECKING:
    from noiseworks.expo.base import BasePolicy
    from noiseworks.kits.rl.options import World
    from noiseworks.kits.rl.transitions import Transitions
    from numpy import ndarray

DATA, MAX_STEPS, CHUNK, EDIT_SCALE = "maze:fork-routes-slow", 150, 4, 0.6
FIRST_EPISODE = 300_000
PARTS = {"select": "base", "edit": "edited", "expo": "both"}


@dataclass
class Shared:
    """The recorded data and the base that imitates them."""

    data: "Transitions"
    base: "BasePolicy"
    seed: int


def prepare(seed: int, context: Context) -> Shared:
    """Record the data and train the base."""
    from noiseworks.expo.options import BaseSizes, Pretraining
    from noiseworks.expo.saving import load_base
    from noiseworks.expo.training import pretrain
    from noiseworks.kits.rl.options import Recorded
    from noiseworks.kits.rl.sources import load_data

    sizes = context.settings
    recorded = Recorded(DATA, sizes["data"], record_limit=sizes.get("limit", MAX_STEPS), reward="step_cost")
    data = load_data(recorded, needs="expo")
    if context.model is not None:
        return Shared(data, load_base(context.model), seed)
    shape = BaseSizes("flow", width=128, blocks=2, time_dim=32, denoising_steps=5, chunk=CHUNK)
    options = Pretraining(max_steps=sizes["fit"], batch_size=256, learning_rate=1e-3, seed=seed, device="cpu")
    return Shared(data, pretrain(data, shape, options), seed)


def world(sizes: Mapping[str, Any]) -> "World":
    """Return the maze; episodes end early at the smoke scale."""
    from noiseworks.kits.rl.options import World

    return World("maze:fork", sizes.get("limit", MAX_STEPS))


def learned(arm: str, shared: Shared, sizes: dict[str, Any]) -> Any:
    """Return an arm's policy and the environment steps that it took to learn."""
    from noiseworks.expo.base import ZeroBase
    from noiseworks.expo.options import Learning, Proposals, Training
    from noiseworks.expo.training import train
    from noiseworks.kits.rl.sources import make_env

    base, scale, count = shared.base, EDIT_SCALE, sizes["candidates"]
    if arm == "rlpd":  # edits of nothing, as large as the box: SAC with recorded data
        base, scale, count = ZeroBase(4, 2, CHUNK), 1.0, 1
    proposals = Proposals(
        n_base=1 if arm == "edit" else count, edit_scale=scale, keep=PARTS.get(arm, "edited")
    )
    learning = Learning(
        envs=4,
        warmup=sizes["warmup"],
        utd=sizes["utd"],
        critics=4,
        critic_hidden=sizes["hidden"],
        layers=2,
        tau=0.01,
        learning_rate=1e-3,
        gamma=0.98,
        edit_base="policy" if arm == "rlpd" else "buffer",
        train_base=arm != "rlpd",
        warmup_policy="uniform" if arm == "rlpd" else "base",
    )
    options = Training(max_steps=sizes["rounds"], batch_size=64, seed=shared.seed, device="cpu")
    env = make_env(world(sizes), learning.envs, needs="expo", chunk=CHUNK)
    learner, loop = train(base, env, shared.data, (proposals, learning, options), progress=False)
    return learner, loop.steps


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: return of each episode, and that of the base that it ended with."""
    import torch
    from noiseworks.kits.rl.sources import make_env
    from noiseworks.kits.rl.stepping import evaluate_returns

    sizes, seed = dict(context.settings), shared.seed
    first, generator = FIRST_EPISODE + 1000 * (seed % 1000), torch.Generator().manual_seed(seed)
    env = make_env(world(sizes), sizes["episodes"], needs="expo", chunk=CHUNK)
    learner, steps = (None, 0) if arm == "bc" else learned(arm, shared, sizes)
    base = shared.base if learner is None or arm == "rlpd" else learner.policy.base

    def of_base(obs: "ndarray") -> "ndarray":
        made = base.sample(torch.as_tensor(obs), 1, generator)[:, 0]
        return made.unflatten(1, (CHUNK, -1)).numpy()

    imitated = evaluate_returns(env, of_base, env.num_envs, first)
    found = imitated if learner is None else evaluate_returns(env, learner.policy.act, env.num_envs, first)
    metrics = {"return": found.returns.tolist(), "base_return": imitated.returns.tolist()}
    return Measurement(metrics | {"steps": float(steps), "gap_closed": closed(found.returns).tolist()})


def closed(returns: "ndarray") -> "ndarray":
    """Return the share of the gap from the recorded behaviour's mean return to the expert's."""
    behaviour, expert = -116.1, -55.55
    return (returns - behaviour) / (expert - behaviour)


def sizes(
    data: int, fit: int, rounds: int, warmup: int, utd: int, rest: tuple[int, int, int]
) -> dict[str, int]:
    """Return the settings of a scale."""
    candidates, hidden, episodes = rest
    made = {"data": data, "fit": fit, "rounds": rounds, "warmup": warmup, "utd": utd}
    return made | {"candidates": candidates, "hidden": hidden, "episodes": episodes}


CLAIM = Claim(
    method="expo",
    paper="EXPO: Stable Reinforcement Learning with Expressive Policies (arXiv 2507.07986)",
    statement="Bounded edits of an imitating policy's actions reach returns that choosing among its actions does not.",
    testbed="maze",
    arms=(
        Arm("bc", "imitation", "baseline"),
        Arm("rlpd", "SAC with recorded data", "baseline"),
        Arm("select", "choice among its actions", "baseline"),
        Arm("edit", "edits without choice", "baseline"),
        Arm("expo", "EXPO", "method"),
    ),
    targets=(
        at_least("return", "expo", "select", difference=15.0),
        at_least("gap_closed", "expo", "bc", difference=0.8),
        no_worse("base_return", "expo", "bc", by=10.0),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes(1_000, 3, 2, 4, 1, (2, 8, 2)) | {"limit": 24}),
        "quick": Scale((500,), 180, sizes(10_000, 200, 6, 60, 1, (4, 32, 10))),
        "laptop": Scale((1000, 1001, 1002, 1003, 1004), 1200, sizes(20_000, 2_000, 28, 200, 1, (4, 64, 40))),
    },
    prepare=prepare,
    run=run,
    preconditions=(Ceiling("bc", "return", -90.0, "imitation alone returns {:.0f}: little is left to gain"),),
    units="episode",
    columns={
        "return": "return",
        "gap_closed": "share of the gap to the expert that is closed",
        "base_return": "return of the base alone",
        "steps": "environment steps",
    },
)
