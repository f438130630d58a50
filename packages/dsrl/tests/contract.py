"""What dsrl promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def policy() -> Any:
    """Make a tiny policy of the maze."""
    import torch
    from noiseworks.kits.policies.native import NativePolicy, PolicyConfig

    sizes = {"obs_dim": 4, "action_dim": 2, "horizon": 4, "n_obs_steps": 1, "n_action_steps": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PolicyConfig(**sizes, num_train_timesteps=10, down_dims=(8, 16), step_embed_dim=8)
        return NativePolicy(config).eval()


def save_actor(path: Path) -> None:
    """Write an untrained noise actor for the tiny policy."""
    import torch
    from noiseworks.dsrl import Decoding, HostDecoder, SteeredPolicy
    from noiseworks.dsrl.steering import build_actor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        actor = build_actor(4, 8, [8, 8], 1.5)
    SteeredPolicy(HostDecoder(policy(), 2), actor, Decoding(steps=2)).save_pretrained(path)


def load_actor(path: Path) -> Any:
    """Return the actor's weights."""
    from noiseworks.dsrl import HostDecoder, SteeredPolicy

    return SteeredPolicy.from_pretrained(path, HostDecoder(policy(), 2)).actor.state_dict()


def lerobot() -> Any:
    """Make a tiny policy of LeRobot's for the maze."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        down_dims=(32, 64),
        n_obs_steps=1,
        horizon=4,
        n_action_steps=2,
    )
    return DiffusionPolicy(config).eval()


def check_frozen(base: Any, read: Any = "obs") -> None:
    """Steer a policy for a few chunks: not a bit of it changes."""
    import torch
    from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
    from noiseworks.dsrl import DSRLNA, Decoding, HostDecoder, LatentNoiseVecEnv, Learning
    from noiseworks.kits.rl.sb3 import GymnasiumVecEnv

    before = {name: t.clone() for name, t in base.state_dict().items()}
    mazes = GymnasiumVecEnv(MazeVectorEnv(2, "open", reward="step_cost", max_steps=8, chunk=2))
    env = LatentNoiseVecEnv(mazes, HostDecoder(base, 2, read), Decoding())
    DSRLNA(env, Learning(warmup=4, batch_size=4, hidden=8, utd=1, envs=2)).learn(12)
    assert all(torch.equal(before[name], t) for name, t in base.state_dict().items())


def place_and_speed(seen: Any) -> dict[str, Any]:
    """Return the maze's observation under LeRobot's names."""
    return {"observation.state": seen[:, :2], "observation.environment_state": seen[:, 2:]}


def trained(folder: Path, stop_after: int | None, variant: str) -> Any:
    """Learn three rounds, or stop before."""
    from noiseworks.dsrl import Decoding, HostDecoder, Learning
    from noiseworks.dsrl.training import SteeringLoop, train
    from noiseworks.kits.rl.options import World
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    sizes = {"batch_size": 4, "hidden": 8, "utd": 1, "envs": 2, "warmup": 4, "layer_norm": True}
    rounds = {"decisions": 24, "round_decisions": 8, "checkpoint_every": 0}
    learning = Learning(variant=variant, **sizes, **rounds)
    with open_run(folder, {"learning": learning}) as run, stopping(stop_after):
        world = World("maze:open", 6)
        learner, _ = train(HostDecoder(policy(), 2), world, Decoding(), learning, run)
        return SteeringLoop(learner, learning).state_dict()


def files(folder: Path) -> dict[str, Path]:
    """Make a policy, an actor, and folders that a user could name by mistake."""
    from noiseworks.kits.rl.testing import mistaken_data

    policy().save_pretrained(folder / "policy")
    save_actor(folder / "actor")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    made = {name: folder / name for name in ("policy", "actor", "empty", "taken.txt")}
    return made | mistaken_data(folder)


PLACE = "--model {policy} --env maze:open --episode-steps 6"
TINY = "--steps 2 --decisions 8 --envs 2 --warmup 4 --batch-size 4 --hidden 8 --utd 1 --episodes 2"
CONTRACT = Contract(
    files=files,
    good={
        f"train {PLACE} {TINY} --data maze:open-expert --record-steps 40 --layer-norm --candidates 3 --out run": (
            "run/metrics.csv",
            "run/actor/model.safetensors",
        ),
        f"train {PLACE} {TINY} --variant sac --tie repeat --out run": ("run/actor/model.safetensors",),
        f"eval {PLACE} --episodes 2 --steps 2 --paths paths.png": ("paths.png",),
        f"eval {PLACE} --actor {{actor}} --episodes 2 --steps 2 --deterministic": (),
    },
    bad=[
        (f"train {PLACE} --magnitude 0 --out actor", "magnitude"),
        (f"train {PLACE} --data maze:open-expert --variant sac --out actor", "no noise"),
        (f"train {PLACE} --data {{narrow}} --out run", "observations (3,)"),
        (f"train {PLACE} --data {{endless}} --out run", "lacks terminals"),
        (f"train {PLACE} --variant sac --candidates 2 --out run", "candidates"),
        (f"train {PLACE} --out {{taken.txt}}/actor", "taken.txt"),
        ("train --model {policy} --env fork --out actor", "maze:<layout>"),
        ("train --model {policy} --env maze:xl --out actor", "xl"),
        ("train --model {empty} --env maze:open --out actor", "empty"),
        ("train --model nowhere --env maze:open --out actor", "nowhere"),
        ("eval --model {policy} --env gym:Nowhere-v0", "Nowhere"),
        ("train --model {policy} --env gym:Pendulum-v1 --out run", "(3,)"),
        ("eval --model {policy} --env gym:Pendulum-v1 --paths paths.png", "drawn in mazes"),
        (f"eval {PLACE} --paths paths.svg", ".png or .webp"),
        (f"eval {PLACE} --actor {{empty}}", "empty"),
        (f"eval {PLACE} --steps 11", "11"),
    ],
    attach={
        "native policy": lambda: check_frozen(policy()),
        "LeRobot policy": lambda: check_frozen(lerobot(), place_and_speed),
    },
    resume={
        "DSRL-NA": Resume(lambda folder, stop: trained(folder, stop, "na"), 2),
        "DSRL-SAC": Resume(lambda folder, stop: trained(folder, stop, "sac"), 2),
    },
    artifacts={"noise actor": Artifact(save_actor, load_actor)},
)
