"""What diffusiondrive promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def planner(design: str = "diffusiondrive") -> Any:
    """Make a tiny planner."""
    import torch
    from noiseworks.diffusiondrive import Architecture, Normalizer, Planner

    times = 0.5 * torch.arange(1, 9)
    anchors = torch.stack([torch.stack((5 * times, side * times), -1) for side in (-1.0, 0.0, 1.0)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture = Architecture(design=design, width=16, modes=3)
        return Planner(architecture, anchors, Normalizer.navsim()).eval().requires_grad_(False)


def files(folder: Path) -> dict[str, Path]:
    """Make a planner, scenes and anchors of a user's, and what could be named by mistake."""
    import numpy as np
    from noiseworks.bench.testbeds.drive import label
    from noiseworks.kits.driving import write_scenes

    planner().save_pretrained(folder / "model")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    np.save(folder / "short.npy", np.ones((20, 6, 2)))
    labelled = label(4, 12)
    (folder / "own").mkdir()
    write_scenes(folder / "own" / "mine.npz", labelled.scenes, {"plans": labelled.plans})
    labelled.scenes.lanes[3] = -2
    (folder / "bare").mkdir()
    write_scenes(folder / "bare" / "mine.npz", labelled.scenes, {"plans": labelled.plans})
    return {name: folder / name for name in ("model", "empty", "taken.txt", "short.npy", "own", "bare")}


def load(path: Path) -> Any:
    """Return the saved weights."""
    from noiseworks.diffusiondrive import Planner

    return Planner.from_pretrained(path).state_dict()


def trained(folder: Path, stop_after: int | None) -> Any:
    """Train four steps, or stop before."""
    from noiseworks.diffusiondrive import Architecture, Fitting, fit_planner
    from noiseworks.diffusiondrive.data import scenes_of
    from noiseworks.diffusiondrive.options import SceneSet
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    _, table = scenes_of(SceneSet(scenes=16))
    fitting = Fitting(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0)
    with open_run(folder, {"fit": fitting}) as run, stopping(stop_after):
        return fit_planner(table, Architecture(width=16, modes=3), fitting, run).state_dict()


TINY = "--scenes 12 --width 16 --modes 3 --max-steps 1 --batch-size 4 --device cpu"
CONTRACT = Contract(
    files=files,
    good={
        f"train {TINY} --out run": ("run/model/model.safetensors",),
        f"train {TINY} --design regression --out averaged": ("averaged/model/model.safetensors",),
        "make --scenes 24 --width 16 --max-steps 1 --batch-size 4 --device cpu --out all": (
            "all/diffusion/model/model.safetensors",
        ),
        "eval --model {model} --scenes 12 --video modes.webp": ("modes.webp",),
        "eval --model {model} --scenes 4 --stepping consistent --steps 3": (),
        "train --data {own} --width 16 --modes 3 --max-steps 1 --batch-size 4 --device cpu --out mine": (
            "mine/model/model.safetensors",
        ),
        "eval --model {model} --data {own}": (),
        "scenes --count 4 --jobs 1 --out made": ("made/scenes_0_000000_4.npz",),
        "bench --model {model} --batches 1 3 --turns 1": (),
        "anchors --scenes 12 --modes 4 --out centres": ("centres/model.safetensors",),
    },
    bad=[
        (f"train {TINY} --out {{taken.txt}}/run", "taken.txt"),
        ("train --width 20 --out run", "multiple of 8"),
        ("train --scenes 12 --modes 20 --out run", "anchors"),
        ("train --design vanilla --out run", "vanilla"),
        ("make --scenes 12 --width 16 --out run", "need at least as many scenes, got 12"),
        ("eval --model {empty}", "empty"),
        ("eval --model {model} --steps 21", "steps"),
        ("eval --model {model} --start 1000", "start"),
        ("eval --model {model} --video modes.gif", "webp"),
        (f"train {TINY} --anchors {{short.npy}} --out run", "[N, 8, 2] for this model, got [20, 6, 2]"),
        (f"train {TINY} --data {{bare}} --out run", "scene 3 has no drivable area"),
        ("eval --model {model} --data {empty}", "no .npz file"),
        ("scenes --count 1 --out made", "count"),
        ("scenes --out {taken.txt}", "taken.txt"),
        ("bench --model {model} --batches 0 64", "at least one scene"),
        ("anchors --modes 1 --out centres", "modes"),
        ("anchors --out {model}", "anchors"),
    ],
    artifacts={"model": Artifact(lambda path: planner().save_pretrained(path), load)},
    resume={"train": Resume(trained, 2)},
)
