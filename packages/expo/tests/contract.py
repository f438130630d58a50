"""What expo promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

SIZES = {"width": 8, "blocks": 1, "time_dim": 4, "denoising_steps": 2}


def base(chunk: int = 2) -> Any:
    """Make a tiny base of the maze."""
    import torch
    from noiseworks.expo import GenerativeBase
    from noiseworks.expo.options import BaseSizes

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GenerativeBase(4, 2, BaseSizes(**SIZES, chunk=chunk)).eval().requires_grad_(False)


def native() -> Any:
    """Make a tiny policy of the kit."""
    import torch
    from noiseworks.kits.policies.native import NativePolicy, PolicyConfig

    sizes = {"obs_dim": 4, "action_dim": 2, "horizon": 4, "n_obs_steps": 1, "n_action_steps": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PolicyConfig(**sizes, num_train_timesteps=10, down_dims=(8, 16), step_embed_dim=8)
        return NativePolicy(config).eval()


def policy() -> Any:
    """Make an untrained on-the-fly policy."""
    import torch
    from noiseworks.expo import ExpoLearner, Learning, Proposals

    stats = torch.zeros(4), torch.ones(4)
    return ExpoLearner(base(), stats, Proposals(n_base=2), Learning(critics=2, critic_hidden=8)).policy


def files(folder: Path) -> dict[str, Path]:
    """Make bases, a policy, and folders that a user could name by mistake."""
    from noiseworks.expo.saving import save_base, save_policy
    from noiseworks.kits.rl.testing import mistaken_data

    save_base(folder / "base", base())
    save_policy(folder / "policy", policy())
    native().save_pretrained(folder / "native")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    made = {name: folder / name for name in ("base", "policy", "native", "empty", "taken.txt")}
    return made | mistaken_data(folder)


def load(path: Path) -> Any:
    """Return the saved weights."""
    from noiseworks.expo import load_policy

    return load_policy(path).state_dict()


def load_weights(path: Path) -> Any:
    """Return a saved base's weights."""
    from noiseworks.expo.saving import load_base

    return load_base(path).state_dict()


def save(path: Path) -> None:
    """Write a base."""
    from noiseworks.expo.saving import save_base

    save_base(path, base())


def save_whole(path: Path) -> None:
    """Write a policy."""
    from noiseworks.expo import save_policy

    save_policy(path, policy())


def learned(folder: Path, stop_after: int | None) -> Any:
    """Learn for four rounds, or stop before."""
    from noiseworks.bench.testbeds.maze import record
    from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
    from noiseworks.expo import Learning, Proposals, train
    from noiseworks.expo.options import Training
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Training(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0)
    learning = Learning(envs=2, warmup=4, utd=2, critics=2, critic_hidden=8, layers=1)
    env = MazeVectorEnv(2, "open", reward="step_cost", max_steps=4, chunk=2)
    data = record("open", "expert", 60, reward="step_cost")
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        learner, loop = train(
            base(), env, data, (Proposals(n_base=2), learning, options), run, progress=False
        )
        return learner.training_state()["networks"] | {"decisions": loop.decisions}


def imitated(folder: Path, stop_after: int | None) -> Any:
    """Imitate for four steps, or stop before."""
    from noiseworks.bench.testbeds.maze import record
    from noiseworks.expo import pretrain
    from noiseworks.expo.options import BaseSizes, Pretraining
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Pretraining(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0)
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        return pretrain(record("open", "expert", 60), BaseSizes(**SIZES), options, run).state_dict()


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
        n_action_steps=4,
    )
    return DiffusionPolicy(config).eval()


def place_and_speed(seen: Any) -> dict[str, Any]:
    """Return the maze's observation under LeRobot's names."""
    return {"observation.state": seen[:, :2], "observation.environment_state": seen[:, 2:]}


def check_frozen(model: Any, **reading: Any) -> None:
    """Learn edits of a policy that is kept as it is: not a bit of it changes."""
    import torch
    from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
    from noiseworks.expo import HostBase, Learning, Proposals, train
    from noiseworks.expo.options import Training

    before = {name: t.clone() for name, t in model.state_dict().items()}
    env = MazeVectorEnv(2, "open", reward="step_cost", max_steps=4, chunk=4)
    learning = Learning(envs=2, warmup=0, utd=1, critics=2, critic_hidden=8, train_base=False)
    settings = (Proposals(n_base=2), learning, Training(max_steps=1, batch_size=4, device="cpu"))
    train(HostBase(model, 2, **reading), env, None, settings, progress=False)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


PLACE = "--env maze:open --episode-steps 6"
TINY = "--n-base 2 --envs 2 --warmup 2 --utd 1 --critics 2 --critic-hidden 8 --batch-size 4 --device cpu"
BASE = "--width 8 --blocks 1 --time-dim 4 --denoising-steps 2 --max-steps 2 --batch-size 4 --device cpu"
CONTRACT = Contract(
    files=files,
    good={
        f"fit --data maze:open-expert --record-steps 60 {BASE} --chunk 2 --out run": (
            "run/base/model.safetensors",
        ),
        f"train --model {{base}} {PLACE} {TINY} --data maze:open-expert --record-steps 60 --max-steps 2 "
        "--out run": ("run/policy/model.safetensors",),
        f"eval --policy {{policy}} {PLACE} --episodes 2 --keep base --paths paths.webp": ("paths.webp",),
        f"eval --model {{native}} {PLACE} --episodes 2": (),
    },
    bad=[
        (f"train --model {{base}} {PLACE} --edit-scale 0 --out run", "edit_scale"),
        (f"train --model {{base}} {PLACE} --n-base 2 --n-edit 3 --out run", "n_edit"),
        (f"train --model {{base}} {PLACE} --critics 2 --subset 3 --out run", "subset"),
        (f"train --model {{base}} {PLACE} --out {{taken.txt}}/run", "taken.txt"),
        ("train --model {base} --env gym:CartPole-v1 --out run", "bounded"),
        ("train --model {base} --env gym:Pendulum-v1 --out run", "(3,)"),
        (f"train --model {{empty}} {PLACE} --out run", "empty"),
        ("fit --data nowhere --out run", "nowhere"),
        ("fit --data {endless} --out run", "lacks terminals"),
        (f"train --model {{base}} {PLACE} --data {{endless}} --out run", "lacks terminals"),
        (f"train --model {{base}} {PLACE} --data {{narrow}} --out run", "3 observations"),
        (f"eval {PLACE}", "--policy"),
        (f"eval --policy {{empty}} {PLACE}", "empty"),
        (f"eval --policy {{policy}} {PLACE} --keep most", "keep"),
    ],
    attach={
        "native policy": lambda: check_frozen(native()),
        "LeRobot policy": lambda: check_frozen(lerobot(), read=place_and_speed, obs_dim=4),
    },
    artifacts={"policy": Artifact(save_whole, load), "base": Artifact(save, load_weights)},
    resume={"train": Resume(learned, 2), "fit": Resume(imitated, 2)},
)
