"""What rrcm promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

SHAPE = (1, 8)


def network() -> Any:
    """Return the smallest sizes."""
    from noiseworks.rrcm import Network

    return Network(depth=1, width=16, heads=2, patch=4, hidden=8, projected=8)


def encoder() -> Any:
    """Make a new encoder of the digits."""
    import torch
    from noiseworks.rrcm import RrcmEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RrcmEncoder(network(), image_size=8, channels=1)


def save(path: Path) -> None:
    """Save an encoder."""
    from noiseworks.rrcm.saving import save_encoder

    save_encoder(path, encoder(), network(), SHAPE)


def load(path: Path) -> Any:
    """Return its weights and sizes."""
    from noiseworks.rrcm.saving import load_encoder

    loaded, sizes, shape = load_encoder(path)
    return {"weights": loaded.state_dict(), "network": vars(sizes), "shape": shape}


def save_head(path: Path) -> None:
    """Save a classifier."""
    from noiseworks.rrcm import NoisyClassifier
    from noiseworks.rrcm.saving import save_classifier

    save_classifier(path, NoisyClassifier(encoder(), 10, sigma=0.5), network(), SHAPE)


def load_head(path: Path) -> Any:
    """Return its weights and noise."""
    from noiseworks.rrcm.saving import load_classifier

    loaded, sizes, _ = load_classifier(path)
    return {"weights": loaded.state_dict(), "network": vars(sizes), "sigma": loaded.sigma}


def files(folder: Path) -> dict[str, Path]:
    """Make models and a table, and files that a user could name by mistake."""
    import numpy as np

    save(folder / "encoder")
    save_head(folder / "classifier")
    np.savez(folder / "odd.npz", x=np.zeros((40, 9, 9), np.uint8), y=np.arange(40) % 2)
    (folder / "table.tsv").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.6\t1\t0.1\n1\t2\t-1\t0\t0\t0.1\n"
    )
    (folder / "words.tsv").write_text("no table\n")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    names = ("encoder", "classifier", "odd.npz", "table.tsv", "words.tsv", "full")
    return {name: folder / name for name in names}


def pretrained(folder: Path, stop_after: int | None) -> Any:
    """Pre-train four steps, or stop before."""
    from noiseworks.kits.backbones import load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.rrcm import Pretraining, pretrain

    options = Pretraining(
        max_steps=4, batch_size=8, device="cpu", checkpoint_every=0, scales=2, most_scales=8
    )
    images, _ = load_images("digits", needs="rrcm")
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        return pretrain(images, network(), options, run=run, progress=False).state_dict()


def finetuned(folder: Path, stop_after: int | None) -> Any:
    """Fine-tune four steps, or stop before."""
    from noiseworks.kits.backbones import load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.rrcm import Finetuning, finetune

    options = Finetuning(max_steps=4, batch_size=8, device="cpu", checkpoint_every=0)
    images, labels = load_images("digits", needs="rrcm")
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        made = finetune(encoder(), images / 2 + 0.5, labels, 0.5, options, run=run, progress=False)
        return made.state_dict()


RUN = "--max-steps 2 --device cpu --out run"
SMALL = "--depth 1 --hidden 8 --projected 8"
PRETRAIN = f"pretrain {SMALL} {RUN} --width 16 --heads 2 --patch 4 --batch-size 8"
FINETUNE = "finetune --max-steps 2 --batch-size 8 --device cpu --out tuned"
CERTIFY = "certify --model {classifier} --images 2 --n 20 --n0 5 --device cpu --out table"
CONTRACT = Contract(
    files=files,
    good={
        PRETRAIN: ("run/encoder/model.safetensors",),
        f"{FINETUNE} --model {{encoder}} --sigma 0.25": ("tuned/classifier/model.safetensors",),
        f"{FINETUNE} --model {{classifier}} --freeze-head": ("tuned/classifier/model.safetensors",),
        f"{FINETUNE} --model {{encoder}} --task linear --sigma 0": ("tuned/classifier/model.safetensors",),
        CERTIFY: ("table/table.tsv", "table/settings.json"),
        "report --tables {table.tsv} --radii 0 --radii 0.5 --picture curves.svg": ("curves.svg",),
    },
    bad=[
        (f"pretrain {SMALL} {RUN} --width 16 --heads 2 --patch 3 --batch-size 8", "multiple of patch"),
        (f"pretrain {SMALL} {RUN} --width 20 --heads 4", "heads"),
        (f"{PRETRAIN} --most-scales 4", "most_scales"),
        (f"{PRETRAIN} --last-decay 0.5", "last_decay"),
        (f"pretrain {SMALL} {RUN} --width 16 --heads 2 --batch-size 100000", "batch_size"),
        (f"{PRETRAIN} --data nowhere", "nowhere"),
        (f"{FINETUNE} --model nowhere", "nowhere"),
        (f"{FINETUNE} --model {{encoder}} --sigma 0", "sigma"),
        (f"{FINETUNE} --model {{encoder}} --task linear --sigma 0.5", "clean images"),
        (f"{FINETUNE} --model {{encoder}} --freeze-head", "freeze_head"),
        (f"{FINETUNE} --model {{encoder}} --data {{odd.npz}}", "side 8"),
        ("certify --model {classifier} --n 20 --n0 30 --out table", "n0"),
        (f"{CERTIFY} --alpha 0.6", "alpha"),
        ("certify --model {classifier} --n 5 --n0 5 --out table", "certifies nothing"),
        ("certify --model {encoder} --out table", "rrcm/classifier"),
        ("certify --model {classifier} --sigma 0 --out table", "sigma"),
        ("certify --model {classifier} --n 20 --n0 5 --out {full}", "something else"),
        ("report --tables {words.tsv}", "no table"),
        ("report --tables nowhere.tsv", "nowhere"),
        ("report --tables {table.tsv} --radii -1", "radii"),
        ("report --tables {table.tsv} --picture a.txt", ".svg"),
    ],
    artifacts={"encoder": Artifact(save, load), "classifier": Artifact(save_head, load_head)},
    resume={"pretrain": Resume(pretrained, 2), "finetune": Resume(finetuned, 2)},
)
