"""What pso promises beside its equations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume

FEW = "--kind renoising --num-inference-steps 2"
TRAIN = (
    f"train --model {{model}} --prompts {{prompts.txt}} --reward brightness {FEW} --batch-size 2 --max-steps 1 "
    "--device cpu --out run"
)
OFFLINE = f"offline --model {{model}} {FEW} --batch-size 2 --max-steps 1 --device cpu --out run"
CUSTOMIZE = (
    f"customize --model {{model}} --instance 'a red circle' --class-prompt 'a circle' {FEW} --batch-size 2 "
    "--negatives 2 --max-steps 1 --device cpu --out run"
)
EVAL = "eval --model {model} --prompts {prompts.txt} --reward brightness --per-prompt 1 --device cpu --kind renoising"
COMPARE = (
    f"compare --model {{model}} --prompts {{prompts.txt}} --reward brightness {FEW} --batch-size 2 --max-steps 1 "
    "--per-prompt 1 --control --device cpu --out out"
)
LORA = ("run/lora/pytorch_lora_weights.safetensors", "run/metrics.csv")


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one of another family, prompts, images with choices, and adapters that fit or do not."""
    import numpy as np
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import add_lora, save_lora
    from noiseworks.kits.pictures import write_picture

    for name, family in (("model", "sd"), ("sd3", "sd3")):
        tiny_pipeline(family).save_pretrained(folder / name)
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    rng = np.random.default_rng(0)
    lines = []
    for name in ("pairs", "style", "mixed", "pictures", "full"):
        (folder / name).mkdir()
    for number, prompt in enumerate(("a red circle", "a blue square")):
        for name in ("pairs", "style", "mixed", "pictures"):
            for kind in "ab" if name in ("pairs", "mixed") else "a":
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                write_picture(pixels, folder / name / f"{number}{kind}.png")
        lines.append({"prompt": prompt, "winner": f"{number}a.png", "loser": f"{number}b.png"})
    bare = [{key: value for key, value in line.items() if key != "loser"} for line in lines]
    for name, rows in (("pairs", lines), ("style", bare), ("mixed", [lines[0], bare[1]])):
        (folder / name / "choices.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name, family in (("lora", "sd"), ("other", "sdxl")):
        pipe = tiny_pipeline(family)
        add_lora(pipe.unet, 2)
        save_lora(pipe, folder / name)
    (folder / "full" / "thesis.tex").write_text("x")
    names = ("model", "sd3", "prompts.txt", "pairs", "style", "mixed", "pictures", "full", "lora", "other")
    return {name: folder / name for name in names}


def online(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train four rounds online, or stop before the end."""
    from dataclasses import replace

    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.pso import OnlinePSO, Preference, Sampler
    from noiseworks.pso.options import ONLINE

    def judge(images, prompts):
        return torch.stack([images.flatten(1).mean(1), -images[:, 0].flatten(1).mean(1)], 1)

    options = replace(ONLINE, max_steps=4, batch_size=2, learning_rate=1e-2, device="cpu", checkpoint_every=0)
    prompts = ["a red circle", "a blue square", "a cross"]
    trainer = OnlinePSO(
        tiny_pipeline("sd"), prompts, judge, options, Sampler(2, "renoising"), Preference(rule="random")
    )
    return _fit(trainer, options, folder, stop_after)


def refreshed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train four steps on targets against images that are drawn anew every second step, or stop before the end."""
    from dataclasses import replace

    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.pso import OfflinePSO, Pairing, Sampler
    from noiseworks.pso.options import OFFLINE

    options = replace(
        OFFLINE, max_steps=4, batch_size=2, learning_rate=1e-2, device="cpu", checkpoint_every=0
    )
    targets = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer = OfflinePSO(
        tiny_pipeline("sd"),
        ["a red circle", "a blue square"],
        targets,
        torch.tensor([0, 1, 0]),
        options=options,
        sampler=Sampler(2, "renoising"),
        pairing=Pairing(kappa=10.0, refresh=2),
    )
    return _fit(trainer, options, folder, stop_after)


def _fit(trainer, options, folder, stop_after) -> Mapping[str, Any]:
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    return {name: p.detach() for name, p in trainer.trainable.items()}


CONTRACT = Contract(
    files=files,
    good={
        f"{TRAIN.replace('renoising', 'ancestral')} --rule random --shared-start --clamp-eps none": LORA,
        f"{OFFLINE} --data {{pairs}}": LORA,
        f"{OFFLINE} --data {{style}} --gamma 0.5 --anchor 0.1 --refresh 1": LORA,
        f"{CUSTOMIZE} --images {{pictures}} --timesteps script": LORA,
        f"{EVAL} --lora {{lora}} --steps 2,3 --out out": ("out/trial.json", "out/images.png"),
        COMPARE: ("out/trial.json", "out/images.png"),
    },
    bad=[
        (f"{TRAIN} --beta 0", "beta"),
        (f"{TRAIN} --clamp-eps 1", "clamp_eps"),
        (TRAIN.replace("steps 2", "steps 1"), "num_inference_steps"),
        (TRAIN.replace("renoising", "own"), "kind"),
        (TRAIN.replace("{model}", "{sd3}"), "sd3"),
        (TRAIN.replace("brightness", "beauty"), "unknown reward"),
        (TRAIN.replace("{prompts.txt}", "gone.txt"), "gone.txt"),
        (TRAIN.replace("--out run", "--out {full}"), "thesis.tex"),
        (f"{OFFLINE} --data {{mixed}}", "have a loser"),
        (f"{OFFLINE} --data {{full}}", "choices"),
        (f"{OFFLINE} --data {{pairs}} --refresh 2", "refresh"),
        (f"{OFFLINE} --data {{pairs}} --gamma -1", "gamma"),
        (f"{CUSTOMIZE} --images {{full}}", "no pictures"),
        (f"{CUSTOMIZE.replace('--negatives 2', '--negatives 1')} --images {{pictures}}", "negatives"),
        (f"{EVAL} --lora {{other}}", "does not fit"),
        (f"{EVAL} --lora {{full}}", "pytorch_lora_weights"),
        (f"{EVAL} --lora {{lora}} --steps 1", "steps"),
        (COMPARE.replace("--out out", "--out {model}"), "source"),
    ],
    resume={"online": Resume(online, 2), "refreshed": Resume(refreshed, 3)},
)
