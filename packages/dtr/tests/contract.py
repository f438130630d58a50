"""What dtr promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def model() -> Any:
    """Make a tiny DiT of the digits."""
    import torch
    from noiseworks.kits.backbones import DiT, DiTConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiT(DiTConfig(depth=1, width=16, heads=2))


def save(path: Path) -> None:
    """Save it with routing."""
    from noiseworks.dtr import Routing, save_routed

    save_routed(path, model(), Routing(beta=0.5), "cosine")


def load(path: Path) -> Any:
    """Return weights and routing."""
    from noiseworks.dtr import load_routed

    loaded, routing, schedule = load_routed(path)
    return {"weights": loaded.state_dict(), "routing": vars(routing), "schedule": schedule}


def files(folder: Path) -> dict[str, Path]:
    """Make a model, and files that a user could name by mistake."""
    import numpy as np

    save(folder / "model")
    images = np.zeros((40, 9, 9), np.uint8)
    np.savez(folder / "odd.npz", x=images, y=np.arange(40) % 2)
    np.savez(folder / "no-labels.npz", x=images)
    (folder / "empty").mkdir()
    names = ("model", "odd.npz", "no-labels.npz", "empty")
    return {name: folder / name for name in names}


def trained(folder: Path, stop_after: int | None) -> Any:
    """Train four steps, or stop before."""
    from noiseworks.dtr import Routing, fit_routed
    from noiseworks.kits.backbones import Recipe, load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    recipe = Recipe(max_steps=4, batch_size=8, device="cpu", checkpoint_every=0)
    images, labels = load_images("digits", needs="dtr")
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return fit_routed(model(), Routing(), images, labels, recipe, run=run, progress=False).state_dict()


def attached() -> None:
    """Hold the method to what it owes a diffusers pipeline; β = 1 is the neutral setting."""
    from noiseworks.dtr import Routing, attach_routing
    from noiseworks.kits.testing import check_attach

    check_attach(lambda pipe: attach_routing(pipe.transformer, Routing(beta=1.0)), "dit")
    check_attach(lambda pipe: attach_routing(pipe.transformer, Routing()), "dit", neutral=False)


TRAIN = "train --depth 1 --width 16 --heads 2 --max-steps 2 --batch-size 8 --device cpu --out run"
CONTRACT = Contract(
    files=files,
    good={
        TRAIN: ("run/model/model.safetensors",),
        "sample --model {model} --n 3 --steps 2 --device cpu --out digits.png": ("digits.png",),
        "eval --model {model} --device cpu": (),
        "inspect --channels 384 --picture masks.svg": ("masks.svg",),
        "inspect --channels 48 --kind random --num-tasks 50": (),
    },
    bad=[
        (f"{TRAIN} --beta 0", "beta"),
        (f"{TRAIN} --beta 1.5", "beta"),
        (f"{TRAIN} --beta 0.01", "leaves none"),
        (f"{TRAIN} --alpha -1", "alpha"),
        (f"{TRAIN} --num-tasks 500", "num_tasks"),
        (f"{TRAIN} --patch 3", "multiple of patch"),
        (f"{TRAIN} --data {{odd.npz}}", "multiple of patch"),
        (f"{TRAIN} --data {{no-labels.npz}}", "labels"),
        (f"{TRAIN} --data nowhere", "nowhere"),
        ("sample --model {empty} --out a.png", "empty"),
        ("sample --model {model} --out a.txt", ".png"),
        ("eval --model nowhere", "nowhere"),
        ("inspect --channels 0", "channels"),
        ("inspect --channels 4 --beta 0.1", "leaves none"),
    ],
    attach={"dit": attached},
    artifacts={"model": Artifact(save, load)},
    resume={"train": Resume(trained, 2)},
)
