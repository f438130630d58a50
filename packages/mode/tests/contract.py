"""What mode promises beside its equations."""

from functools import cache
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


@cache
def episodes() -> Any:
    """Return demonstrations of two tasks: a step towards one end or the other."""
    import numpy as np
    from noiseworks.kits.policies import Episodes

    rng, tasks = np.random.default_rng(0), np.array([0, 1])
    obs = np.concatenate((rng.standard_normal((40, 3)), np.eye(2)[np.repeat(tasks, 20)]), 1)
    actions = rng.uniform(-1, 1, (40, 2))
    return Episodes(obs.astype(np.float32), actions.astype(np.float32), np.array([20, 40]), tasks)


def demonstrations(folder: Path) -> Path:
    """Write the folder that training reads."""
    import numpy as np

    folder.mkdir(exist_ok=True)
    episodes().save(folder / "episodes.npz")
    np.save(folder / "goals.npy", np.random.default_rng(1).standard_normal((2, 1, 5)))
    return folder


def small(dropout: float = 0.0) -> Any:
    """Return a small architecture."""
    from noiseworks.mode.config import SmallArchitecture

    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "chunk": 4}
    return SmallArchitecture(**sizes, attention_dropout=dropout, expert_dropout=dropout)


@cache
def made() -> Any:
    """Return an untrained model for the demonstrations."""
    import torch
    from noiseworks.kits.policies import LinearNormalizer
    from noiseworks.mode import MoDEConfig, MoDEModel, StateEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MoDEConfig(**vars(small()), action_dim=2, obs_dim=3, goal_dim=5)
        encoder = StateEncoder(torch.randn(2, 1, 5), LinearNormalizer.identity(3))
        return MoDEModel(config, encoder, LinearNormalizer.identity(2)).eval()


def files(folder: Path) -> dict[str, Path]:
    """Make demonstrations, a policy for them, a policy with NaN, and lists of wordings that do not fit."""
    import copy

    made().save_pretrained(folder / "model")
    broken = copy.deepcopy(made())
    broken.denoiser.blocks[0].experts[0].out.weight.data.fill_(float("nan"))
    broken.save_pretrained(folder / "nan")
    demonstrations(folder / "data")
    (folder / "texts.json").write_text('[["open", "open it"], ["close"]]')
    return {name: folder / name for name in ("data", "model", "nan", "texts.json")}


def clip_files(folder: Path) -> dict[str, Path]:
    """Make a tiny CLIP text model and two tasks' wordings as well."""
    import json

    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    words = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "clip").mkdir()
    (folder / "clip" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "clip" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "clip" / "vocab.json"), str(folder / "clip" / "merges.txt"))
    tokenizer.save_pretrained(folder / "clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=len(vocabulary), projection_dim=8, **sizes)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "clip")
    (folder / "tasks.json").write_text('[["open"], ["close"]]')
    return files(folder) | {name: folder / name for name in ("clip", "tasks.json")}


def trained(folder: Path, stop_after: int | None) -> dict[str, Any]:
    """Train with dropout and random routing until a step, or go on to the end."""
    from noiseworks.kits.training.testing import stopping
    from noiseworks.mode import MoDEModel
    from noiseworks.mode.commands import train
    from noiseworks.mode.config import Demonstrations, Training

    source = Demonstrations(str(demonstrations(folder.parent / "data")))
    training = Training(max_steps=6, batch_size=8, device="cpu", checkpoint_every=0)
    with stopping(stop_after):
        report = train(source=source, out=folder, architecture=small(0.1), training=training)
        return dict(MoDEModel.from_pretrained(report.model).state_dict())
    return {}


def model_of(folder: Path) -> dict[str, Any]:
    """Read a policy back."""
    from noiseworks.mode import MoDEModel

    found = MoDEModel.from_pretrained(folder)
    return {"config": vars(found.config), "weights": dict(found.state_dict())}


FIT = "--max-steps 1 --batch-size 8 --device cpu"
SHAPE = "--width 16 --num-layers 1 --num-heads 2 --chunk 4"
TRAIN, TUNE = "train --data {data} --out out", "finetune --model {model} --data {data} --out out"
RUN = ("out/config.json", "out/metrics.csv", "out/model/config.json", "out/model/*.safetensors")
CONTRACT = Contract(
    files=clip_files,
    good={
        f"{TRAIN} {FIT} {SHAPE}": RUN,
        f"{TUNE} {FIT} --freeze-routers": RUN,
        f"ablate --data {{data}} --out out --variants full,dense {FIT} {SHAPE}": (
            "out/full/*",
            "out/dense/*",
        ),
        "eval --model testbed:mode --tasks 10 --episodes 1 --device cpu --video film.webp": ("film.webp",),
        "cache --model {model} --form bmm": (),
        "usage --model {model} --steps 4 --out usage.png": ("usage.png",),
        "compare --model {model} --repeats 1 --batch 2 --device cpu --backend eager": (),
        "goals --texts {tasks.json} --out goals.npy --model {clip} --device cpu": ("goals.npy",),
    },
    bad=[
        ("train --data nowhere --out out", "nowhere"),
        (f"{TRAIN} --demonstrations 3", "testbed"),
        (f"{TRAIN} --num-experts 2 --top-k 3", "top_k"),
        (f"{TRAIN} --proprio", "proprio"),
        (f"{TRAIN} --batch-size 500", "500"),
        (f"{TRAIN} --encoder film-resnet18", "images"),
        ("train --data {data} --out {model} --batch-size 8", "no training run"),
        ("finetune --model nowhere --data {data} --out out", "nowhere"),
        ("finetune --model testbed:mode --data {data} --out out", "use data that fit"),
        ("ablate --data {data} --out out --variants full,dropout", "dropout"),
        ("eval --model nowhere", "nowhere"),
        ("eval --model testbed:none", "none"),
        ("eval --model testbed:mode --tasks 12", "12"),
        ("eval --model testbed:mode --env pusht", "tabletop"),
        ("eval --model testbed:mode --video film.gif", ".webp"),
        ("cache --model testbed:mode-dense-large", "dense"),
        ("cache --model {nan}", "holds NaN"),
        ("usage --model {nan}", "holds NaN"),
        ("usage --model {model} --out map.txt", ".png"),
        ("compare --model testbed:mode --backend none", "backend"),
        ("goals --texts {texts.json} --out goals.npy --model {model}", "equally many"),
        ("goals --texts missing.json --out goals.npy", "missing.json"),
    ],
    artifacts={"policy": Artifact(lambda folder: made().save_pretrained(folder), model_of)},
    resume={"train": Resume(trained, 3)},
)
