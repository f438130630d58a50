"""What switch-dit promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def plain(**sizes: int) -> Any:
    """Make a tiny DiT of the digits whose weights are all random."""
    import torch
    from noiseworks.kits.backbones import DiT, DiTConfig

    model = DiT(DiTConfig(**{"depth": 2, "width": 16, "heads": 2} | sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def switched(fresh: bool = False, **sizes: int) -> Any:
    """Make it a Switch-DiT whose experts are random, or fresh."""
    import torch
    from noiseworks.switch_dit import SwitchDiT

    generator = torch.Generator().manual_seed(1)
    made = SwitchDiT.from_dit(plain(**sizes))
    with torch.no_grad():
        for parameter in () if fresh else made.layers.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def load(path: Path) -> Any:
    """Return weights and schedule."""
    from noiseworks.switch_dit import SwitchDiT

    made, schedule = SwitchDiT.from_pretrained(path)
    return {"weights": made.state_dict(), "schedule": schedule}


def files(folder: Path) -> dict[str, Path]:
    """Make models of all kinds, and a folder that is none."""
    from noiseworks.kits.backbones import save_dit, to_diffusers

    save_dit(folder / "plain", plain(), schedule="cosine")
    to_diffusers(plain()).save_pretrained(folder / "diffusers")
    switched().save_pretrained(folder / "model")
    (folder / "empty").mkdir()
    return {name: folder / name for name in ("plain", "diffusers", "model", "empty")}


def trained(folder: Path, stop_after: int | None) -> Any:
    """Train four steps, or stop before."""
    from noiseworks.kits.backbones import Recipe, load_images
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.switch_dit import fit_switch

    recipe = Recipe(max_steps=4, batch_size=8, device="cpu", checkpoint_every=0)
    images, labels = load_images("digits", needs="switch-dit")
    with open_run(folder, {"fit": recipe}) as run, stopping(stop_after):
        return fit_switch(switched(), images, labels, recipe, run=run, progress=False).state_dict()


def attached() -> None:
    """Hold the method to what it owes a diffusers pipeline; fresh experts change nothing."""
    from noiseworks.kits.testing import check_attach

    for fresh in (True, False):
        model = switched(fresh, width=32, heads=4)
        check_attach(lambda pipe, model=model: model.attach_to(pipe.transformer), "dit", neutral=fresh)


TRAIN = "train --depth 1 --width 16 --heads 2 --max-steps 2 --batch-size 8 --device cpu --out run"
CONTRACT = Contract(
    files=files,
    good={
        "convert --model {plain} --out made": ("made/model.safetensors",),
        "convert --model {diffusers} --num-experts 2 --top-k 1 --out made": ("made/model.safetensors",),
        TRAIN: ("run/model/model.safetensors",),
        "train --model {model} --max-steps 2 --batch-size 8 --device cpu --out run": (
            "run/model/model.safetensors",
        ),
        "sample --model {model} --n 3 --steps 2 --device cpu --out digits.png": ("digits.png",),
        "inspect --model {model} --picture experts.svg": ("experts.svg",),
    },
    bad=[
        (f"{TRAIN} --top-k 4", "top_k"),
        (f"{TRAIN} --num-experts 1", "num_experts"),
        (f"{TRAIN} --num-tasks 10", "num_tasks"),
        (f"{TRAIN} --prior-weight -1", "prior_weight"),
        (f"{TRAIN} --model {{empty}}", "empty"),
        (f"{TRAIN} --patch 3", "multiple of patch"),
        ("convert --model {model} --out made", "switch-dit"),
        ("convert --model {empty} --out made", "empty"),
        ("convert --model {plain} --out {plain}", "source"),
        ("sample --model {plain} --out a.txt", ".png"),
        ("inspect --model nowhere", "nowhere"),
    ],
    attach={"dit": attached},
    artifacts={"model": Artifact(lambda path: switched().save_pretrained(path), load)},
    resume={"train": Resume(trained, 2)},
)
