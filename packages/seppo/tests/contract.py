"""What seppo promises beside its equations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume

ROLLOUT = "--num-inference-steps 2 --guidance-scale 2"
TINY = f"--model {{model}} --data {{winners}} {ROLLOUT}"
TRAIN = f"train {TINY} --batch-size 2 --device cpu --out run"
SHORT = f"{TRAIN} --max-steps 2 --updates-per-checkpoint 1"
OTHERS = "--size 32 --opponents latest --flip soft --anchor-samples 2 --reuse"
EVAL = f"eval --model {{model}} --prompts {{prompts.txt}} --reward brightness {ROLLOUT} --per-prompt 1 --device cpu"
COMPARE = (
    f"compare --model {{model}} --data {{pairs}} {ROLLOUT} --prompts {{prompts.txt}} --reward brightness "
    "--batch-size 1 --max-steps 1 --per-prompt 1 --device cpu --out out"
)
CHOICES = {
    "winners": [{"prompt": "a red circle", "winner": "0.png"}, {"prompt": "a cross", "winner": "1.png"}],
    "pairs": [{"prompt": "a red circle", "winner": "0.png", "loser": "1.png"}],
    "nameless": [{"prompt": " ", "winner": "0.png"}],
    "lost": [{"prompt": "a cross", "winner": "9.png"}],
    "empty": [],
    "torn": [{"prompt": "a cross", "winner": "torn.png"}],
    "large": [{"prompt": "a cross", "winner": "large.png"}],
    "mixed": [{"prompt": "a cross", "winner": "0.png"}, {"prompt": "a cross", "winner": "large.png"}],
}


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one of another family, winners, an adapter and broken ones of each."""
    import numpy as np
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import add_lora, save_lora
    from PIL import Image

    pipe = tiny_pipeline("sd")
    pipe.save_pretrained(folder / "model")
    tiny_pipeline("dit").save_pretrained(folder / "dit")
    side = pipe("", num_inference_steps=1, output_type="np").images.shape[1]
    for name, choices in CHOICES.items():
        own = folder / name
        own.mkdir()
        (own / "choices.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in choices))
        for number, size in (("0", side), ("1", side), ("large", 2 * side)):
            pixels = np.random.default_rng(size).integers(0, 255, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(own / f"{number}.png")
        (own / "torn.png").write_bytes(b"no image")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    for name, family in (("lora", "sd"), ("other", "sdxl")):
        tuned = tiny_pipeline(family)
        add_lora(tuned.unet, 2)
        save_lora(tuned, folder / name)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    return {
        name: folder / name for name in ("model", "dit", "prompts.txt", "lora", "other", "full", *CHOICES)
    }


def resumed(folder: Path, stop_after: int | None, reuse: bool) -> Mapping[str, Any]:
    """Train four steps or stop before the end."""
    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import Policy, Rollout
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.seppo import Objective, Opponents, SePPO, Training

    options = Training(
        max_steps=4, batch_size=3, learning_rate=1e-2, lora_rank=2, device="cpu", checkpoint_every=0
    )
    pipe, prompts, rollout = tiny_pipeline("sd"), ["a red circle", "a blue square"], Rollout(2, 2.0)
    shape = Policy(pipe, prompts, rollout).conditions.shape
    latents = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    own = (latents, torch.tensor([0, 1, 1, 0]), options, Objective(kappa=100.0))
    trainer = SePPO(pipe, prompts, *own, Opponents(updates_per_checkpoint=1, reuse=reuse), rollout)
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    pool = {f"{i}/{name}": p for i, one in enumerate(trainer.pool.state()) for name, p in one.items()}
    return {name: p.detach() for name, p in trainer.trainable.items()} | pool


CONTRACT = Contract(
    files=files,
    good={
        SHORT: ("run/lora/pytorch_lora_weights.safetensors", "run/pool/001/pytorch_lora_weights.safetensors"),
        f"{SHORT.replace('{winners}', '{mixed}')} {OTHERS}": (
            "run/opponents/0000000-0.safetensors",
            "run/lora/pytorch_lora_weights.safetensors",
        ),
        f"{EVAL} --lora {{lora}} --out out": ("out/trial.json", "out/images.png"),
        COMPARE: ("out/trial.json", "out/images.png"),
    },
    bad=[
        (f"{TRAIN} --kappa 0", "kappa"),
        (f"{TRAIN} --flip often", "flip"),
        (f"{TRAIN} --opponents best", "opponents"),
        (f"{TRAIN} --updates-per-checkpoint 0", "updates_per_checkpoint"),
        (f"{TRAIN} --anchor-samples 0", "anchor_samples"),
        (TRAIN.replace("{winners}", "gone"), "gone"),
        (TRAIN.replace("{winners}", "{nameless}"), "empty prompt"),
        (TRAIN.replace("{winners}", "{lost}"), "9.png"),
        (TRAIN.replace("{winners}", "{empty}"), "no choice"),
        (TRAIN.replace("{winners}", "{torn}"), "torn.png"),
        (TRAIN.replace("{winners}", "{mixed}"), "give size"),
        (TRAIN.replace("{winners}", "{large}"), "give size"),
        (TRAIN.replace("{model}", "{dit}"), "dit"),
        (TRAIN.replace("{model}", "missing"), "missing"),
        (TRAIN.replace("--out run", "--out {full}"), "thesis.tex"),
        (f"{EVAL} --lora {{other}}", "does not fit"),
        (f"{EVAL} --lora {{full}}", "pytorch_lora_weights"),
        (EVAL.replace("brightness", "beauty") + " --lora {lora}", "unknown reward"),
        (COMPARE.replace("--out out", "--out {model}"), "source"),
    ],
    resume={
        "anew": Resume(lambda folder, stop: resumed(folder, stop, reuse=False), 2),
        "kept": Resume(lambda folder, stop: resumed(folder, stop, reuse=True), 2),
    },
)
