"""What trajectory-diffuser promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def planner() -> Any:
    """Make a tiny planner of the maze."""
    import torch
    from noiseworks.trajectory_diffuser import Architecture, TrajectoryPlanner

    sizes = {"horizon": 4, "draft_width": 16, "draft_layers": 1, "features": 8, "levels": 2, "hidden": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = TrajectoryPlanner(4, 2, Architecture(**sizes, num_steps=6, return_scale=10.0))
    made.return_range.copy_(torch.tensor([0.0, 10.0]))
    return made.eval().requires_grad_(False)


def files(folder: Path) -> dict[str, Path]:
    """Make a planner, and folders that a user could name by mistake."""
    from noiseworks.kits.rl.testing import mistaken_data

    planner().save_pretrained(folder / "model")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    return {name: folder / name for name in ("model", "empty", "taken.txt")} | mistaken_data(folder)


def load(path: Path) -> Any:
    """Return the saved weights."""
    from noiseworks.trajectory_diffuser import TrajectoryPlanner

    return TrajectoryPlanner.from_pretrained(path).state_dict()


def trained(folder: Path, stop_after: int | None) -> Any:
    """Train four steps, or stop before."""
    from noiseworks.bench.testbeds.maze import record
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.trajectory_diffuser import Fitting, fit_planner

    fitting = Fitting(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0, average_from=2)
    with open_run(folder, {"fit": fitting}) as run, stopping(stop_after):
        return fit_planner(record("umaze", "medium", 200), planner().architecture, fitting, run).state_dict()


DATA = "--data maze:umaze-expert+medium --record-steps 400"
TINY = "--horizon 4 --draft-width 16 --draft-layers 1 --features 8 --levels 2 --hidden 8"
PLACE = "--model {model} --env maze:umaze --reward sparse --episode-steps 3"
FEW = "--candidates 2 --episodes 2 --together 2"
CONTRACT = Contract(
    files=files,
    good={
        f"fit {DATA} {TINY} --max-steps 2 --batch-size 4 --device cpu --out run": (
            "run/model/model.safetensors",
        ),
        f"eval {PLACE} {FEW} --steps 2 --paths paths.png": ("paths.png",),
        f"compare {PLACE} {FEW} --steps 2 --repeats 2": (),
        f"plan {PLACE} {FEW} --steps 0 --out plans.json": ("plans.json",),
    },
    bad=[
        (f"fit {DATA} --horizon 12 --out run", "multiple of 8"),
        (f"fit {DATA} {TINY} --out {{taken.txt}}/run", "taken.txt"),
        (f"fit --data nowhere {TINY} --out run", "nowhere"),
        (f"fit --data {{endless}} {TINY} --out run", "lacks terminals"),
        ("fit --data maze:umaze-expert --record-steps 20 --horizon 64 --out run", "no window"),
        ("eval --model {empty} --env maze:umaze", "empty"),
        ("eval --model {model} --env umaze", "maze:<layout>"),
        ("eval --model {model} --env gym:Pendulum-v1", "(3,)"),
        (f"eval {PLACE} {FEW} --steps 7", "7"),
        (f"eval {PLACE} {FEW} --start noise --steps 0", "at least 1"),
        (f"eval {PLACE} {FEW} --target nan", "target"),
        (f"plan {PLACE} --out plans.txt", ".json"),
    ],
    artifacts={"planner": Artifact(lambda path: planner().save_pretrained(path), load)},
    resume={"fit": Resume(trained, 2)},
)
