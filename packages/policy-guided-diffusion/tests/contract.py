"""What policy-guided-diffusion promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def model() -> Any:
    """Make a tiny trajectory model of the maze."""
    import torch
    from noiseworks.policy_guided_diffusion import Architecture, TrajectoryDiffusion

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TrajectoryDiffusion(4, 2, Architecture(horizon=8, features=8, levels=2))


def files(folder: Path) -> dict[str, Path]:
    """Make a model, an agent, and folders that a user could name by mistake."""
    import torch
    from noiseworks.kits.rl.offline import IQL, IQLSettings, save_learner
    from noiseworks.kits.rl.testing import mistaken_data

    model().save_pretrained(folder / "model")
    save_learner(folder / "agent", IQL(2, torch.zeros(4), torch.ones(4), IQLSettings(hidden=8)))
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    made = {name: folder / name for name in ("model", "agent", "empty", "taken.txt")}
    return made | mistaken_data(folder)


def load(path: Path) -> Any:
    """Return the saved weights."""
    from noiseworks.policy_guided_diffusion import TrajectoryDiffusion

    return TrajectoryDiffusion.from_pretrained(path).state_dict()


def trained(folder: Path, stop_after: int | None) -> Any:
    """Train twelve steps, or stop before."""
    from noiseworks.bench.testbeds.maze import record
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.policy_guided_diffusion import Architecture, fit_trajectories
    from noiseworks.policy_guided_diffusion.options import Fitting, Windows

    fitting = Fitting(max_steps=12, batch_size=4, device="cpu", checkpoint_every=0)
    architecture = Architecture(horizon=8, features=8, levels=2)
    with open_run(folder, {"fit": fitting}) as run, stopping(stop_after):
        return fit_trajectories(
            record("umaze", "medium", 600), architecture, Windows(), fitting, run
        ).state_dict()


def learned(folder: Path, stop_after: int | None) -> Any:
    """Train an agent on samples near its own policy for 350 updates, or stop before."""
    from noiseworks.bench.testbeds.maze import record
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.policy_guided_diffusion import Sampling, train_agent
    from noiseworks.policy_guided_diffusion.options import Agent, Replay

    agent = Agent("iql", updates=350, hidden=8, checkpoint_every=0)
    replay = Replay(pool=4, lifetime=2, refresh_every=150, batch_size=8)
    with open_run(folder, {"agent": agent}) as run, stopping(stop_after):
        data = record("umaze", "medium", 600)
        learner = train_agent(data, agent, model(), replay, None, Sampling(steps=3), run=run)
        return learner.state_dict() | {"updates": learner.updates}


DATA = "--data maze:umaze-medium --record-steps 600"
TINY = "--horizon 8 --features 8 --levels 2"
CONTRACT = Contract(
    files=files,
    good={
        f"fit {DATA} {TINY} --max-steps 2 --batch-size 4 --device cpu --out run": (
            "run/model/model.safetensors",
        ),
        "sample --model {model} --n 2 --steps 3 --out made": ("made/model.safetensors",),
        "sample --model {model} --policy {agent} --n 2 --steps 3 --at noisy --out near": (
            "near/model.safetensors",
        ),
        f"train {DATA} --mode real --agent iql --updates 2 --hidden 8 --episodes 2 --out run": (
            "run/agent/model.safetensors",
        ),
        f"train {DATA} --model {{model}} --updates 2 --hidden 8 --pool 4 --refresh-every 1 --steps 2 --episodes 2 "
        "--out run": ("run/agent/model.safetensors",),
    },
    bad=[
        (f"fit {DATA} --horizon 10 --out run", "multiple of 4"),
        (f"fit {DATA} {TINY} --out {{taken.txt}}/run", "taken.txt"),
        (f"fit --data nowhere {TINY} --out run", "nowhere"),
        (f"fit --data maze:umaze-lazy {TINY} --out run", "lazy"),
        ("fit --data {empty} --out run", "empty"),
        (f"fit --data {{endless}} {TINY} --out run", "lacks terminals"),
        ("train --data {endless} --mode real --out run", "lacks terminals"),
        ("train --data {narrow} --model {model} --out run", "3 observations"),
        ("sample --model {empty} --out made", "empty"),
        ("sample --model {model} --coefficient -1 --out made", "coefficient"),
        ("sample --model {model} --policy {model} --out made", "rl/offline-learner"),
        ("sample --model {model} --length 7 --out made", "multiple of 2"),
        (f"train {DATA} --out agent", "--model"),
        (f"train {DATA} --agent sac --mode real --out agent", "sac"),
        ("train --data maze:umaze-medium --reward dense --mode real --out agent", "dense"),
    ],
    artifacts={"model": Artifact(lambda path: model().save_pretrained(path), load)},
    resume={"fit": Resume(trained, 10), "train": Resume(learned, 2)},
)
