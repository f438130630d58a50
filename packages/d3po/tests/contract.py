"""What d3po promises beside its equations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume

ROLLOUT = "--num-inference-steps 2 --guidance-scale 2"
TINY = f"--model {{model}} --prompts {{prompts.txt}} --reward brightness {ROLLOUT}"
TRAIN = f"train {TINY} --batch-size 2 --max-steps 1 --device cpu --out run"
LABELLED = (
    f"train --model {{model}} --data {{drawn}} {ROLLOUT} --copies 3 --max-steps 1 --batch-size 2 --device cpu"
)


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one of another family, prompts, labelled rollouts, an adapter and broken ones of each."""
    from noiseworks.d3po.answers import save_answers
    from noiseworks.d3po.commands import sample
    from noiseworks.d3po.label.page import open_answers
    from noiseworks.d3po.options import Preference
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.diffusers_hosts.options import Hardware
    from noiseworks.kits.image_tuning import Rollout, Subject, add_lora, save_lora

    for family in ("sd", "dit"):
        tiny_pipeline(family).save_pretrained(folder / ("model" if family == "sd" else family))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    (folder / "blank.txt").write_text("\n")
    rollout = Rollout(num_inference_steps=2, guidance_scale=2.0)
    subject = Subject(str(folder / "model"), str(folder / "prompts.txt"))
    sample(
        subject=subject,
        out=folder / "drawn",
        preference=Preference(copies=3),
        rollout=rollout,
        hardware=Hardware("cpu"),
    )
    labels = {"labels": [[0, 1, 2], [1, 0, 0]], "ragged": [[0, 1, 2], [1, 0]], "ties": [[0, 0, 0], [1, 1, 1]]}
    for name, rows in labels.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    answers, data = open_answers(folder / "all.jsonl", folder / "drawn" / "samples.json", 2, 3)
    save_answers(folder / "others.jsonl", answers, "of others")
    for better in (0, 2, None, None):
        answers.answer(better)
    save_answers(folder / "all.jsonl", answers, data)
    for name, family in (("lora", "sd"), ("other", "sdxl")):
        pipe = tiny_pipeline(family)
        add_lora(pipe.unet, 2)
        save_lora(pipe, folder / name)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    names = ("model", "dit", "prompts.txt", "blank.txt", "drawn", "lora", "other", "full")
    names += ("all.jsonl", "others.jsonl")
    return {name: folder / name for name in (*names, *(f"{one}.json" for one in labels))}


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train four rounds, or stop before the end."""
    from noiseworks.d3po import D3PO, Preference, Training
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import Rollout
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Training(max_steps=4, batch_size=2, learning_rate=1e-2, device="cpu", checkpoint_every=0)
    prompts, rollout = ["a red circle", "a blue square", "a cross"], Rollout(2, 2.0)
    judge = lambda images, prompts: images.flatten(1).mean(1)  # noqa: E731
    trainer = D3PO(tiny_pipeline("sd"), prompts, judge, options, rollout, Preference(beta=1.0))
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    return {name: p.detach() for name, p in trainer.trainable.items()}


CONTRACT = Contract(
    files=files,
    good={
        f"{TRAIN} --pictures-every 1": ("run/lora/pytorch_lora_weights.safetensors", "run/samples/00001.png"),
        "label --data {drawn} --out {all.jsonl}": (),
        f"{LABELLED} --labels {{all.jsonl}} --out run": ("run/lora/pytorch_lora_weights.safetensors",),
        f"{LABELLED} --labels {{labels.json}} --out run": ("run/lora/pytorch_lora_weights.safetensors",),
        f"sample --model {{model}} --prompts {{prompts.txt}} {ROLLOUT} --copies 2 --device cpu --out out": (
            "out/00003.png",
            "out/samples.json",
            "out/trajectories/model.safetensors",
        ),
        f"eval {TINY} --lora {{lora}} --per-prompt 1 --device cpu --out out": (
            "out/trial.json",
            "out/images.png",
        ),
        f"compare {TINY} --batch-size 1 --max-steps 1 --per-prompt 1 --control --device cpu --out out": (
            "out/trial.json",
            "out/images.png",
        ),
    },
    bad=[
        (f"{TRAIN} --beta 0", "beta"),
        (f"{TRAIN} --clamp-eps 1", "clamp_eps"),
        (f"{TRAIN} --copies 1", "copies"),
        (f"{TRAIN} --eta 0", "eta"),
        (f"{TRAIN} --precision bf16-true", "precision"),
        (TRAIN.replace("brightness", "beauty"), "unknown reward"),
        (TRAIN.replace("brightness", "math:beauty"), "math:beauty"),
        (TRAIN.replace("brightness", "clip:missing"), "missing"),
        (TRAIN.replace("{prompts.txt}", "{blank.txt}"), "prompt"),
        (TRAIN.replace("{prompts.txt}", "gone.txt"), "gone.txt"),
        (TRAIN.replace("{model}", "{dit}"), "dit"),
        (TRAIN.replace("--out run", "--out {full}"), "thesis.tex"),
        (f"{TRAIN} --labels {{labels.json}}", "either prompts"),
        ("train --model {model} --out run", "either prompts"),
        (f"{LABELLED} --labels {{ragged.json}} --out run", "3 numbers"),
        (f"{LABELLED} --labels {{ties.json}} --out run", "no image"),
        (f"{LABELLED} --labels gone.json --out run", "gone.json"),
        ("label --data {drawn} --out {others.jsonl} --no-browser", "other images"),
        ("label --data {full} --out me.jsonl", "samples.json"),
        ("label --data {drawn} --out me.json", ".jsonl"),
        ("label --data {drawn} --out me.jsonl --port 70000", "port"),
        (f"{LABELLED} --labels {{labels.json}} --eta 0.5 --out run", "drawn with another"),
        (f"eval {TINY} --lora {{other}} --device cpu", "does not fit"),
        (f"eval {TINY} --lora {{full}} --device cpu", "pytorch_lora_weights"),
        (f"eval {TINY} --lora {{lora}} --device cpu --out {{full}}", "thesis.tex"),
        ("sample --model {model} --prompts {prompts.txt} --out {model}", "source"),
    ],
    resume={"online": Resume(resumed, 2)},
)
