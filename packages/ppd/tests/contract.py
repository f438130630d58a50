"""What ppd promises beside its equations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

CHOICES = "--choices {data}"
EMBED = f"embed {CHOICES} --model {{model}} --choices-each 2 --reserved 2 --device cpu --out out"
TRAIN = (
    f"train --model {{model}} {CHOICES} --users {{users}} --batch-size 2 --max-steps 1 --device cpu --out run"
)
SAMPLE = (
    "sample --model {model} --branch {branch} --users {users} --prompts {prompts.txt} --num-inference-steps 2 "
    "--guidance-scale 2 --device cpu --out out"
)
EVAL = f"eval --model {{model}} --branch {{branch}} {CHOICES} --users {{users}} --draws 1 --device cpu"


def files(folder: Path) -> dict[str, Path]:
    """Make tiny pipelines, choices of two people, their embeddings, a branch and broken ones of each."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.diffusers_hosts.options import Hardware
    from noiseworks.ppd import Support, UserBranch
    from noiseworks.ppd.commands import embed
    from PIL import Image

    for family in ("sd", "sdxl", "sd3"):
        tiny_pipeline(family).save_pretrained(folder / ("model" if family == "sd" else family))
    data = folder / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 90, 30)).save(data / f"{number}.png")
    rows = []
    for i in range(8):
        winner, loser = i % 4, (i + 1 + i // 4) % 4
        files = {"winner": f"{winner}.png", "loser": f"{loser}.png"}
        rows.append({"prompt": "a red circle", **files, "user": f"u{i % 2}"})
    (data / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    broken = {"missing": rows[0] | {"winner": "gone.png"}, "empty": rows[0] | {"prompt": ""}}
    for name, row in broken.items():
        (data / f"{name}.jsonl").write_text(json.dumps(row))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    (folder / "blank.txt").write_text("\n")
    hardware = Hardware("cpu")
    support = Support(choices_each=2, reserved=2)
    embed(choices=data, out=folder / "users", model=str(folder / "model"), support=support, hardware=hardware)
    reward = "noiseworks.kits.image_tuning.rewards:brightness"
    UserBranch.new(tiny_pipeline("sd"), 40, "latents").save(folder / "branch")
    UserBranch.new(tiny_pipeline("sd"), 40, reward).save(folder / "foreign")
    UserBranch.new(tiny_pipeline("sdxl"), 40, "latents").save(folder / "other")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    names = [
        "model",
        "sdxl",
        "sd3",
        "data",
        "prompts.txt",
        "blank.txt",
        "users",
        "branch",
        "foreign",
        "other",
    ]
    names.append("full")
    return {name: folder / name for name in names} | {f"{n}.jsonl": data / f"{n}.jsonl" for n in broken}


def small() -> Any:
    """Return two people with embeddings of three numbers."""
    import torch
    from noiseworks.ppd import Support, embed_users

    described = torch.arange(24.0).view(8, 3).sin()
    return embed_users([f"u{i % 2}" for i in range(8)], described, "e", Support(choices_each=2, reserved=2))


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train four steps, or stop before the end."""
    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.ppd import PPD, Taste, Training

    options = Training(max_steps=4, batch_size=2, learning_rate=1e-2, device="cpu", checkpoint_every=0)
    latents = torch.arange(5 * 2 * 256.0).view(5, 2, 4, 8, 8).sin()
    numbers = torch.arange(5) % 2
    prompts = ["a red circle", "a blue square"]
    parts = (latents, numbers, numbers, small(), options, Taste(kappa=50.0))
    trainer = PPD(tiny_pipeline("sd"), prompts, *parts)
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    return {name: p.detach() for name, p in trainer.trainable.items()}


def save_branch(path: Path) -> None:
    """Write a branch."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.ppd import UserBranch

    UserBranch.new(tiny_pipeline("sd"), 3, "e").save(path)


def load_branch(path: Path) -> Mapping[str, Any]:
    """Read it back."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.ppd import UserBranch

    branch = UserBranch.load(tiny_pipeline("sd"), path)
    return {name: p.detach() for name, p in branch.trainable().items()}


def load_users(path: Path) -> Mapping[str, Any]:
    """Read users back."""
    from noiseworks.ppd import Users

    return vars(Users.load(path))


CONTRACT = Contract(
    files=files,
    good={
        EMBED: ("out/config.json", "out/model.safetensors"),
        f"probe {CHOICES} --model {{model}} --choices-each 2 --device cpu": (),
        f"{TRAIN} --equal-users": ("run/user_branch/config.json", "run/user_branch/model.safetensors"),
        f"{SAMPLE} --user u0:0.5,u1:0.5": ("out/0001.png", "out/images.json"),
        f"{SAMPLE} --user u0:0.5,u1:0.5 --mix output": ("out/0001.png", "out/images.json"),
        EVAL: (),
    },
    bad=[
        (EMBED.replace("{data}", "{missing.jsonl}"), "gone.png"),
        (EMBED.replace("{data}", "{empty.jsonl}"), "empty prompt"),
        (EMBED.replace("{data}", "{full}"), "no choices"),
        (EMBED.replace("--reserved 2", "--reserved 1"), "reserved"),
        (EMBED.replace("--reserved 2", "--reserved 9"), "nobody made 9"),
        (EMBED.replace(" --model {model}", ""), "needs the pipeline"),
        (f"{EMBED} --encoder math:gone", "math:gone"),
        (EMBED.replace("--out out", "--out {full}"), "thesis.tex"),
        (f"probe {CHOICES} --model {{model}} --choices-each 9 --device cpu", "choices_each"),
        (f"{TRAIN} --kappa 0", "kappa"),
        (f"{TRAIN} --user-dropout 1", "user_dropout"),
        (f"{TRAIN} --weights bfloat16", "mixed precision"),
        (TRAIN.replace("{model}", "{sd3}"), "sd3"),
        (TRAIN.replace("{users}", "{branch}"), "users"),
        (TRAIN.replace("{data}", "{missing.jsonl}"), "gone.png"),
        (f"{SAMPLE} --user u9", "unknown user"),
        (f"{SAMPLE} --user u0:0.5,u1:0.2", "sum to 0.7"),
        (f"{SAMPLE} --user u0:nan,u1:0.5", "not to 1"),
        (f"{SAMPLE} --user u0:1.5,u1:-0.5 --mix output", "at least 0"),
        (f"{SAMPLE} --user u0".replace("{prompts.txt}", "{blank.txt}"), "prompt"),
        (f"{SAMPLE} --user u0".replace("{branch}", "{other}"), "another model"),
        (f"{SAMPLE} --user u0".replace("{branch}", "{foreign}"), "encoder"),
        (f"{SAMPLE} --user u0".replace("--out out", "--out {full}"), "thesis.tex"),
        (EVAL.replace("{branch}", "{full}"), "user-branch"),
    ],
    artifacts={
        "users": Artifact(lambda path: small().save(path), load_users),
        "branch": Artifact(save_branch, load_branch),
    },
    resume={"training": Resume(resumed, 2)},
)
