"""What lmd promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

SIZES = {
    "depth": 1, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2, "patch": 2,
}  # fmt: skip


def autoencoder(shift: float = 0.0) -> Any:
    """Make a tiny autoencoder: 16x16x3 images, 8x8x4 latents."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            mid_block_add_attention=False,
        ).eval()
    made.quant_conv.bias.data += shift
    return made


def network() -> Any:
    """Make a tiny masked auto-encoder of its latents."""
    import torch
    from noiseworks.lmd import LMD, LMDConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LMD(LMDConfig(**SIZES, size=8, channels=4)).eval()


def known(vae: str) -> Any:
    """Say what it was trained on."""
    from noiseworks.kits.backbones.latents import fingerprint
    from noiseworks.lmd.training import Trained

    return Trained(vae, False, fingerprint(autoencoder()), True)


def save(path: Path) -> None:
    """Save it."""
    from noiseworks.lmd.training import save_model

    save_model(path, network(), known(str(path.parent / "vae")))


def load(path: Path) -> Any:
    """Return weights and what it was trained on."""
    from noiseworks.lmd import load_model

    model, trained = load_model(path)
    return {"weights": model.state_dict(), "normalise": trained.normalise}


def save_head(path: Path) -> None:
    """Save a classifier."""
    import torch
    from noiseworks.lmd import Classifier
    from noiseworks.lmd.training import save_classifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_classifier(path, Classifier(network().encoder, 2), known("vae"))


def load_head(path: Path) -> Any:
    """Return its weights."""
    from noiseworks.lmd.training import load_classifier

    return load_classifier(path)[0].state_dict()


def files(folder: Path) -> dict[str, Path]:
    """Make models, autoencoders, a folder of images, and files that a user could name by mistake."""
    import numpy as np
    from PIL import Image

    autoencoder().save_pretrained(folder / "vae")
    autoencoder(1.0).save_pretrained(folder / "other")
    save(folder / "model")
    save_head(folder / "classifier")
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    (folder / "empty").mkdir()
    names = ("vae", "other", "model", "classifier", "photos", "empty")
    return {name: folder / name for name in names}


def inputs() -> Any:
    """Return what is masked in short runs."""
    import torch

    return torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(folder: Path, stop_after: int | None) -> Any:
    """Pre-train four steps, over which the ratio grows, or stop before."""
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.lmd import Masking, Pretraining, pretrain_model

    recipe = Pretraining(
        max_steps=4, batch_size=8, device="cpu", checkpoint_every=0, ema=0.9, optimizer="adan"
    )
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return pretrain_model(
            network().config, inputs(), Masking(), recipe, run=run, progress=False
        ).state_dict()


def tuned(folder: Path, stop_after: int | None) -> Any:
    """Fine-tune four steps on changing images, or stop before."""
    import torch
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.lmd import FineTuning, Space, finetune_model

    recipe = FineTuning(
        max_steps=4,
        batch_size=8,
        device="cpu",
        checkpoint_every=0,
        crop=0.8,
        flip=True,
        mixup=0.8,
        cutmix=1.0,
    )
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(20) % 2
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return finetune_model(
            network().encoder, Space(autoencoder()), images, labels, recipe, run=run, progress=False
        ).state_dict()


RUN = "--max-steps 2 --batch-size 8 --device cpu --out run"
SMALL = "--depth 1 --width 16 --heads 2 --decoder-depth 1 --decoder-width 16 --decoder-heads 2"
PHOTOS = "--data {photos} --size 16"
PRETRAIN = f"pretrain {PHOTOS} --vae {{vae}} {SMALL} {RUN}"
FINETUNE = f"finetune --model {{model}} {PHOTOS} {RUN}"
CONTRACT = Contract(
    files=files,
    good={
        PRETRAIN: ("run/model/model.safetensors", "run/latents/model.safetensors"),
        f"{PRETRAIN} --views 2 --flip --crop 0.5 --cache kept --schedule linear --optimizer adan": (
            "run/model/model.safetensors",
            "kept/model.safetensors",
        ),
        f"pretrain {PHOTOS} --vae pixels --patch 4 --schedule fixed --flip {SMALL} {RUN}": (
            "run/model/model.safetensors",
        ),
        FINETUNE: ("run/classifier/model.safetensors",),
        f"{FINETUNE} --mixup 0.8 --cutmix 1": ("run/classifier/model.safetensors",),
        f"probe --model {{model}} {PHOTOS} --shots 2,5 --device cpu": (),
        f"reconstruct --model {{model}} {PHOTOS} --mask 0.5 --rounds 2 --n 4 --out filled.png": (
            "filled.png",
        ),
        "schedule --steps 30 --plot ratios.svg": ("ratios.svg",),
    },
    bad=[
        (f"pretrain {PHOTOS} --vae {{vae}} --patch 3 {SMALL} {RUN}", "multiple of patch"),
        (f"{PRETRAIN} --most 1", "most"),
        (f"{PRETRAIN} --least 0.8", "least"),
        (f"{PRETRAIN} --least 0", "removes none"),
        (f"{PRETRAIN} --most 0.99", "leaves none"),
        (f"{PRETRAIN} --ramp 0", "ramp"),
        (f"{PRETRAIN} --views 2", "all be the same"),
        (f"pretrain {PHOTOS} --vae {{vae}} {SMALL} --batch-size 4000 --device cpu --out run", "batch_size"),
        (f"pretrain {PHOTOS} --vae {{vae}} --width 18 --heads 3 {RUN}", "multiple of 4"),
        (f"pretrain {PHOTOS} --vae {{vae}} --decoder-width 16 --decoder-heads 3 {RUN}", "decoder_heads"),
        (f"pretrain {PHOTOS} --vae pixels --views 2 {SMALL} {RUN}", "views"),
        (f"pretrain {PHOTOS} --vae {{empty}} {SMALL} {RUN}", "no first stage"),
        (f"pretrain {PHOTOS} --vae testbed:nothing {SMALL} {RUN}", "nothing"),
        (f"pretrain --data digits --vae {{vae}} {SMALL} {RUN}", "channels"),
        (f"pretrain --data {{photos}} --vae {{vae}} {SMALL} {RUN}", "size"),
        (f"finetune --model {{empty}} {PHOTOS} --out run", "empty"),
        (f"finetune --model {{classifier}} {PHOTOS} --out run", "lmd/model"),
        (f"{FINETUNE} --vae {{other}}", "another autoencoder"),
        (f"{FINETUNE} --layer-decay 0", "layer_decay"),
        (f"probe --model {{model}} {PHOTOS} --shots 50", "shots"),
        (f"reconstruct --model {{model}} {PHOTOS} --mask 1 --out a.png", "mask"),
        (f"reconstruct --model {{model}} {PHOTOS} --rounds 0 --out a.png", "rounds"),
        ("reconstruct --model {model} --out a.txt", ".png"),
        ("schedule --steps 0", "steps"),
        ("schedule --plot a.txt", ".svg"),
    ],
    artifacts={"model": Artifact(save, load), "classifier": Artifact(save_head, load_head)},
    resume={"pretrain": Resume(trained, 2), "finetune": Resume(tuned, 2)},
)
