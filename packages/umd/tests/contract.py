"""What umd promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def network(classes: int = 0) -> Any:
    """Make a tiny auto-encoder of the digits."""
    import torch
    from noiseworks.umd import UMD, UMDConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UMD(
            UMDConfig(
                depth=1,
                decoder_depth=1,
                width=16,
                heads=2,
                patch=2,
                image_size=8,
                channels=1,
                classes=classes,
            )
        )


def save(path: Path, classes: int = 0) -> None:
    """Save it."""
    from noiseworks.umd import Mixture
    from noiseworks.umd.training import save_model

    save_model(path, network(classes), schedule="cosine", mixture=Mixture())


def load(path: Path) -> Any:
    """Return weights, mixture and schedule."""
    from noiseworks.umd import load_model

    model, schedule, mixture = load_model(path)
    return {"weights": model.state_dict(), "schedule": schedule, "mixture": vars(mixture)}


def files(folder: Path) -> dict[str, Path]:
    """Make models, a folder of images, and files that a user could name by mistake."""
    import json
    import shutil

    import numpy as np
    from PIL import Image

    save(folder / "model")
    save(folder / "labelled", 10)
    shutil.copytree(folder / "model", folder / "deeper")
    config = folder / "deeper" / "config.json"
    found = json.loads(config.read_text())
    found["model"]["depth"] = 5
    config.write_text(json.dumps(found))
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    (folder / "empty").mkdir()
    names = ("model", "labelled", "deeper", "photos", "empty")
    return {name: folder / name for name in names}


def trained(folder: Path, stop_after: int | None) -> Any:
    """Pre-train four steps, or stop before."""
    from noiseworks.kits.backbones import load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.umd import Mixture, Pretraining, pretrain_model

    recipe = Pretraining(
        max_steps=4, batch_size=8, device="cpu", checkpoint_every=0, crop=0.8, flip=True, ema=0.9
    )
    images, _ = load_images("digits", needs="umd")
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return pretrain_model(
            network().config, images, Mixture(), recipe, run=run, progress=False
        ).state_dict()


def tuned(folder: Path, stop_after: int | None) -> Any:
    """Fine-tune four steps, or stop before."""
    from noiseworks.kits.backbones import load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.umd import FineTuning, Mixture, finetune_model

    recipe = FineTuning(max_steps=4, batch_size=20, device="cpu", checkpoint_every=0)
    images, labels = load_images("digits", needs="umd")
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return finetune_model(
            network(), images, labels, Mixture().fine_tuning(), recipe, "cosine", run=run, progress=False
        ).state_dict()


RUN = "--max-steps 2 --batch-size 8 --device cpu --out run"
SIZES = "--depth 1 --decoder-depth 1 --width 16 --heads 2 --patch 2"
PRETRAIN = f"pretrain --data digits {SIZES} {RUN}"
FINETUNE = f"finetune --model {{model}} --data digits {RUN}"
CONTRACT = Contract(
    files=files,
    good={
        PRETRAIN: ("run/model/model.safetensors",),
        f"{PRETRAIN} --preset dit --no-adaln": ("run/model/model.safetensors",),
        f"pretrain --data {{photos}} --size 8 {SIZES} --max-steps 2 --batch-size 8 --flip --crop 0.8 --device cpu "
        "--out run": ("run/model/model.safetensors",),
        FINETUNE: ("run/model/model.safetensors",),
        "sample --model {labelled} --n 3 --steps 2 --device cpu --out digits.png": ("digits.png",),
        "probe --model {model} --data digits --shots 5,10 --device cpu": (),
        "reconstruct --model {model} --data digits --mask 0.5 --out filled.png": ("filled.png",),
        "eval --model {labelled} --data digits --n 65 --steps 2 --device cpu": (),
    },
    bad=[
        (f"pretrain --data digits --width 16 --heads 2 --patch 3 {RUN}", "multiple of patch"),
        (f"{PRETRAIN} --rho0 1", "rho0"),
        (f"{PRETRAIN} --rho -0.1", "rho"),
        (f"{PRETRAIN} --rho0 0.99", "leaves none"),
        (f"{PRETRAIN} --r0 2", "r0"),
        (f"pretrain --data digits --width 16 --heads 3 {RUN}", "multiple of heads"),
        (f"pretrain --data {{photos}} {SIZES} {RUN}", "size"),
        (f"pretrain --data {{empty}} --size 8 {SIZES} {RUN}", "no images"),
        (f"{PRETRAIN} --size 8", "size is for folders"),
        (f"finetune --model {{model}} --data shapes {RUN}", "shape"),
        ("finetune --model {deeper} --data digits --out run", "depth"),
        ("finetune --model {empty} --data digits --out run", "empty"),
        (
            "sample --model {model} --n 3 --steps 2 --guidance-scale 2 --device cpu --out a.png",
            "without labels",
        ),
        ("sample --model {labelled} --out a.txt", ".png"),
        ("probe --model {model} --data digits --shots 5000", "shots"),
        ("reconstruct --model {model} --data digits --mask 1 --out a.png", "mask ratio"),
        ("eval --model {labelled} --data digits --n 20", "above 64"),
        ("eval --model {model} --data digits", "classes"),
    ],
    artifacts={"model": Artifact(save, load)},
    resume={"pretrain": Resume(trained, 2), "finetune": Resume(tuned, 2)},
)
