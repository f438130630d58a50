"""What pad promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def recording(poses: bool = True, episodes: int = 4) -> Any:
    """Make episodes of a square that walks over an image, by its poses."""
    import numpy as np
    from noiseworks.pad import Recording

    rng, length = np.random.default_rng(0), 6
    path = rng.uniform(-1, 1, (episodes, length + 1, 3)).astype(np.float32)
    frames = rng.integers(0, 256, (episodes * length, 3, 16, 16), dtype=np.uint8)
    goals = rng.normal(size=(episodes, 5)).astype(np.float32)
    ends = length * np.arange(1, episodes + 1)
    return Recording(frames, goals, ends, path.reshape(-1, 3) if poses else None)


def model() -> Any:
    """Make a tiny model for the table."""
    import torch
    from noiseworks.kits.policies.normalizer import LinearNormalizer
    from noiseworks.pad import PAD, Architecture, Shapes, Window

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = Architecture(width=16, depth=1, heads=2, patch=16)
        return PAD(sizes, Window(frames=2), Shapes(3, 32, 3, 32), LinearNormalizer.identity(3)).eval()


def files(folder: Path) -> dict[str, Path]:
    """Make recordings, a model, and files that a user could name by mistake."""
    recording().save(folder / "data")
    recording(poses=False).save(folder / "video")
    model().save_pretrained(folder / "model")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    return {name: folder / name for name in ("data", "video", "model", "empty", "taken.txt")}


def load(path: Path) -> Any:
    """Return the saved config and weights."""
    from noiseworks.pad import PAD

    found = PAD.from_pretrained(path)
    return {"config": found.config(), "weights": dict(found.state_dict())}


def trained(folder: Path, stop_after: int | None) -> Any:
    """Co-train four steps, or stop before."""
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.pad import Architecture, Fitting, Window, fit_pad

    fitting = Fitting(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0, ramp_steps=3)
    sizes = Architecture(width=16, depth=1, heads=2)
    with open_run(folder, {"fit": fitting}) as run, stopping(stop_after):
        done = fit_pad(recording(), sizes, Window(frames=2), fitting, video=recording(poses=False), run=run)
        return dict(done.state_dict())


TINY = "--width 16 --depth 1 --heads 2 --max-steps 1 --batch-size 4 --device cpu"
RUN = ("run/config.json", "run/metrics.csv", "run/model/model.safetensors")
CONTRACT = Contract(
    files=files,
    good={
        f"train --data {{data}} --video {{video}} --out run {TINY} --frames 2": RUN,
        f"train --episodes 1 --tasks 9 --depth-maps --out run {TINY} --patch 16": RUN,
        "eval --model {model} --episodes 1 --tasks 9 --windows 4 --steps 2": (),
        "predict --model {model} --episodes 1 --tasks 9 --windows 2 --steps 2 --out seen.png": ("seen.png",),
        "rollout --model {model} --tasks 9 --episodes 1 --steps 2 --device cpu --video film.webp": (
            "film.webp",
        ),
    },
    bad=[
        (f"train {TINY} --out {{taken.txt}}/run", "taken.txt"),
        ("train --data nowhere --out run", "nowhere"),
        ("train --data {empty} --out run", "frames.npy"),
        ("train --data {video} --out run", "poses"),
        ("train --data {data} --video {empty} --out run", "frames.npy"),
        ("train --video tabletop --no-images --out run", "video"),
        ("train --patch 5 --out run", "multiple of patch"),
        ("train --width 30 --out run", "multiple of heads"),
        ("train --data {data} --batch-size 500 --out run", "500"),
        ("train --data {data} --depth-maps --out run", "depth"),
        ("train --execute 20 --out run", "execute"),
        ("train --video-share 1 --out run", "video_share"),
        ("eval --model {empty}", "empty"),
        ("eval --model {model} --data {data}", "shape"),
        ("predict --model {model} --out seen.gif", ".png"),
        ("rollout --model {model} --env pusht", "pictures"),
        ("rollout --model {model} --execute 9", "n_action_steps"),
        ("rollout --model {model} --video film.gif", ".webp"),
        ("rollout --model {model} --steps 0", "steps"),
    ],
    artifacts={"model": Artifact(lambda path: model().save_pretrained(path), load)},
    resume={"train": Resume(trained, 2)},
)
