"""What dip promises beside its equations."""

import json
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

SIZES = {"width": 16, "layers": 1, "heads": 2, "feedforward": 16}


def motion_model(control: bool = True) -> Any:
    """Make a tiny model."""
    import torch
    from noiseworks.dip import Architecture, MotionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MotionModel(Architecture(**SIZES))
        made = made.with_branch() if control else made
    return made.eval().requires_grad_(False)


def files(folder: Path) -> dict[str, Path]:
    """Make models, a room, plans, clips, and things that a user could name by mistake."""
    import numpy as np

    motion_model().save_pretrained(folder / "model")
    motion_model(control=False).save_pretrained(folder / "base")
    room = {"extent": [3.0, 3.0], "boxes": [[0.0, 0.0, 0.4, 0.8, 0.3, 0.4, 0.0]]}
    (folder / "room.json").write_text(json.dumps(room))
    walk, sit = {"place": [0.0, 1.0, 0.0]}, {"place": [0.0, 1.2, 0.6], "action": "sit"}
    plans = {"way.json": [walk, sit], "inside.json": [{"place": [0.1, 0.1, 0.0]}], "none.json": []}
    plans["twice.json"] = [walk, walk]
    for name, points in plans.items():
        (folder / name).write_text(json.dumps({"start": [0.0, 2.0], "waypoints": points}))
    np.savez(folder / "clips.npz", motion=np.zeros((4, 40, 69), np.float32), actions=np.zeros(4, np.int64))
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    names = ("model", "base", "room.json", "clips.npz", *plans, "empty", "taken.txt")
    return {name: folder / name for name in names}


def load(path: Path) -> Any:
    """Return the saved weights."""
    from noiseworks.dip import MotionModel

    return MotionModel.from_pretrained(path).state_dict()


def trained(folder: Path, stop_after: int | None, stage: int = 1) -> Any:
    """Train four steps, or stop before."""
    from noiseworks.dip import Architecture, Fitting, fit_motion
    from noiseworks.dip.data import clips_of
    from noiseworks.dip.options import Clipset
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    clips = clips_of(Clipset(clips=8))
    fitting = Fitting(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0)
    start = Architecture(**SIZES) if stage == 1 else motion_model(control=False)
    with open_run(folder, {"fit": fitting}) as run, stopping(stop_after):
        return fit_motion(clips, start, fitting, run).state_dict()


def trained_branch(folder: Path, stop_after: int | None) -> Any:
    """Train a branch four steps, or stop before."""
    return trained(folder, stop_after, stage=2)


TINY = "--max-steps 1 --batch-size 4 --device cpu"
SHAPE = "--width 16 --layers 1 --heads 2 --feedforward 16"
FAST = "--steps 2 --policy-steps 1 --patience 1"
CONTRACT = Contract(
    files=files,
    good={
        f"train {TINY} {SHAPE} --clips 8 --out run": ("run/model/model.safetensors",),
        f"train {TINY} --model {{base}} --data {{clips.npz}} --tuned all --out second": (
            "second/model/model.safetensors",
        ),
        f"make {TINY} {SHAPE} --clips 8 --branch-steps 1 --out made": (
            "made/control/model/model.safetensors",
        ),
        "plan --scene {room.json} --start 0 2 --goal 0 -2 --out found.json": ("found.json",),
        f"generate --model {{model}} --scene {{room.json}} --plan {{way.json}} {FAST} --out made": (
            "made/motion_000.npz",
            "made/motion_000.bvh",
            "made/motion_000.webp",
        ),
        f"generate --model {{base}} --way inpainting --cases 1 {FAST} --no-blend --out cases": (
            "cases/motion_000.npz",
        ),
        f"eval --model {{model}} --cases 1 --samples 2 {FAST} --eta 0 --video eval.webp": ("eval.webp",),
        f"compare --model {{model}} --cases 1 {FAST} --video all.webp": ("all.webp",),
    },
    bad=[
        (f"train {TINY} --clips 2 --out run", "clips"),
        (f"train {TINY} --clips 8 --kinds swim --out run", "swim"),
        (f"train {TINY} --width 15 --out run", "width"),
        (f"train {TINY} --data {{taken.txt}} --out run", "taken.txt"),
        (f"train {TINY} --model {{empty}} --clips 8 --out run", "empty"),
        ("train --out {taken.txt}/run", "taken.txt"),
        (f"make {TINY} --clips 8 --branch-steps 0 --out run", "max_steps"),
        ("plan --scene {room.json} --start 0 2 --goal 0 0.1 --out found.json", "inside a wall or furniture"),
        ("plan --scene {room.json} --start 0 2 --goal 0 4 --out found.json", "inside a wall"),
        ("plan --scene {taken.txt} --start 0 2 --goal 0 -2 --out found.json", "json"),
        ("plan --scene {room.json} --start 0 2 --goal 0 -2 --out found.txt", "json"),
        ("generate --model {model} --scene {room.json} --plan {inside.json} --out made", "inside a wall"),
        (
            "generate --model {model} --scene {room.json} --plan {twice.json} --out made",
            "where the one before",
        ),
        (
            "generate --model {model} --scene {room.json} --plan {none.json} --out made",
            "at least one waypoint",
        ),
        ("generate --model {model} --scene {room.json} --plan {room.json} --out made", "no plan"),
        ("generate --model {model} --scene {room.json} --out made", "plan"),
        ("generate --model {model} --out {taken.txt}", "taken.txt"),
        ("generate --model {base} --cases 1 --out made", "control branch"),
        ("generate --model {model} --history 0 --cases 1 --out made", "history"),
        ("generate --model {model} --body {taken.txt} --out made", "markers"),
        ("eval --model {model} --steps 0", "steps"),
        ("eval --model {model} --walk-speed 2 1", "walk_speed"),
        ("eval --model {model} --video eval.gif", "webp"),
        ("compare --model {empty}", "empty"),
    ],
    artifacts={"model": Artifact(lambda path: motion_model().save_pretrained(path), load)},
    resume={"train": Resume(trained, 2), "branch": Resume(trained_branch, 2)},
)
