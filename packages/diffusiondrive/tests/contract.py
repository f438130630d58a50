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
    """Make a planner, and a folder that a user could name by mistake."""
    planner().save_pretrained(folder / "model")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    return {name: folder / name for name in ("model", "empty", "taken.txt")}


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
        "eval --model {model} --scenes 12 --video modes.webp": ("modes.webp",),
        "eval --model {model} --scenes 4 --stepping consistent --steps 3": (),
        "anchors --scenes 12 --modes 4 --out centres": ("centres/model.safetensors",),
    },
    bad=[
        (f"train {TINY} --out {{taken.txt}}/run", "taken.txt"),
        ("train --width 20 --out run", "multiple of 8"),
        ("train --scenes 12 --modes 20 --out run", "anchors"),
        ("train --design vanilla --out run", "vanilla"),
        ("eval --model {empty}", "empty"),
        ("eval --model {model} --steps 21", "steps"),
        ("eval --model {model} --start 1000", "start"),
        ("eval --model {model} --video modes.gif", "webp"),
        ("anchors --modes 1 --out centres", "modes"),
        ("anchors --out {model}", "anchors"),
    ],
    artifacts={"model": Artifact(lambda path: planner().save_pretrained(path), load)},
    resume={"train": Resume(trained, 2)},
)
