"""What b2-diffurl promises beside its equations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume

ROLLOUT = "--num-inference-steps 3 --guidance-scale 2"
TINY = f"--model {{model}} --prompts {{prompts.txt}} --reward brightness {ROLLOUT}"
STAGES = "--left 1 --right 3 --branches 2"
TRAIN = f"train {TINY} {STAGES} --batch-size 2 --max-steps 2 --device cpu --out run"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one of another family, prompts, and adapters that fit and that do not."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import add_lora, save_lora

    for family in ("sd", "dit"):
        tiny_pipeline(family).save_pretrained(folder / ("model" if family == "sd" else family))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    (folder / "blank.txt").write_text("\n")
    for name, family in (("lora", "sd"), ("other", "sdxl")):
        pipe = tiny_pipeline(family)
        add_lora(pipe.unet, 2)
        save_lora(pipe, folder / name)
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    names = ("model", "dit", "prompts.txt", "blank.txt", "lora", "other", "full")
    return {name: folder / name for name in names}


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train three stages, or stop before the end."""
    from noiseworks.b2_diffurl import B2DiffuRL, Branching, Stages, Training
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.image_tuning import Rollout
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Training(max_steps=3, batch_size=2, learning_rate=1e-2, device="cpu", checkpoint_every=0)
    judge = lambda images, prompts: images.flatten(1).mean(1)  # noqa: E731
    start = (tiny_pipeline("sd"), ["a red circle", "a cross"], judge, options, Rollout(3, 2.0))
    trainer = B2DiffuRL(*start, Stages(1, 3), Branching(branches=3))
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    return {name: p.detach() for name, p in trainer.trainable.items()} | {
        "kept": trainer.normalizer.state_dict()
    }


CONTRACT = Contract(
    files=files,
    good={
        TRAIN: ("run/lora/pytorch_lora_weights.safetensors", "run/metrics.csv"),
        "schedule": (),
        f"eval {TINY} --lora {{lora}} --per-prompt 2 --device cpu --out out": (
            "out/trial.json",
            "out/images.png",
        ),
        f"compare {TINY} {STAGES} --batch-size 1 --max-steps 1 --per-prompt 1 --control --device cpu --out out": (
            "out/trial.json",
            "out/images.png",
        ),
    },
    bad=[
        (TRAIN.replace("--branches 2", "--branches 1"), "branches must"),
        (TRAIN.replace("--left 1", "--left 4"), "left must be at most"),
        (TRAIN.replace("--right 3", "--right 4"), "3 steps"),
        (TRAIN.replace("--left 1", "--left 0"), "left must"),
        (f"{TRAIN} --positive -1", "negative"),
        (f"{TRAIN} --eta 0", "eta"),
        (f"{TRAIN} --clip 0", "clip"),
        (f"{TRAIN} --history -1", "history"),
        (TRAIN.replace("brightness", "beauty"), "unknown reward"),
        (TRAIN.replace("{prompts.txt}", "{blank.txt}"), "prompt"),
        (TRAIN.replace("{prompts.txt}", "gone.txt"), "gone.txt"),
        (TRAIN.replace("{model}", "{dit}"), "dit"),
        (TRAIN.replace("--out run", "--out {full}"), "thesis.tex"),
        ("schedule --right 21", "20 steps"),
        ("schedule --rounds 0", "rounds"),
        (f"eval {TINY} --lora {{other}} --device cpu", "does not fit"),
        (f"eval {TINY} --lora {{lora}} --device cpu --out {{full}}", "thesis.tex"),
    ],
    resume={"stages": Resume(resumed, 1)},
)
