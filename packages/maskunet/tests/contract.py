"""What maskunet promises beside its equations."""

from functools import partial
from pathlib import Path

from noiseworks.kits.contracts import Artifact, Contract, Resume

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
WHOLE = ("sd", "sd3")  # a U-Net and a transformer that are held to all of `check_attach`
STEPS = "--num-inference-steps 2 --guidance-scale 4 --device cpu"
DRAW = f"--model {{model}} --prompts {{prompts.txt}} {STEPS}"
TRAIN = "train --model {model} --data {pictures} --device cpu --batch-size 2 --size 32"
LEARN = "--warm-steps 1 --iterations 2"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, masks on it and on another one, prompts, and images with texts."""
    import json

    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.maskunet import MaskNet
    from PIL import Image

    pipe = tiny_pipeline("sd")
    pipe.save_pretrained(folder / "model")
    MaskNet.of(pipe).save_pretrained(folder / "masks")
    MaskNet.of(tiny_pipeline("sd", seed=1)).save_pretrained(folder / "others")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    lines = []
    (folder / "pictures").mkdir()
    for number, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 36), color).save(folder / "pictures" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {color} square"}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "empty").mkdir()
    names = ("model", "masks", "others", "prompts.txt", "pictures", "empty")
    return {name: folder / name for name in names}


def check(family: str) -> None:
    """Attach fresh masks, which keep all weights, to a tiny pipeline."""
    from noiseworks.kits.testing import check_attach, diffusion_host
    from noiseworks.maskunet import MaskNet

    host = diffusion_host(family, steps=2)
    check_attach(lambda pipe: MaskNet.of(pipe).attach(pipe), host, brief=family not in WHOLE)


def check_random() -> None:
    """Attach random masks that keep all weights."""
    from noiseworks.kits.testing import check_attach, diffusion_host
    from noiseworks.maskunet import RandomMasks, attach_random

    check_attach(lambda pipe: attach_random(pipe, RandomMasks(keep=1.0)), diffusion_host("sd", steps=2))


def save(path: Path) -> None:
    """Save masks."""
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.maskunet import MaskConfig, MaskNet

    MaskNet.of(tiny_pipeline("sd"), MaskConfig(generator="rank-k")).save_pretrained(path)


def load(path: Path) -> dict:
    """Read them back."""
    from noiseworks.maskunet import MaskNet

    net = MaskNet.from_pretrained(path)
    return {"fingerprint": net.fingerprint, "config": vars(net.config), **net.state_dict()}


def trained(folder: Path, stop_after: int | None) -> dict:
    """Train masks for three steps."""
    import torch
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.maskunet import Examples, MaskConfig, Training, train_masks

    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    examples = Examples(latents, torch.arange(6) % 2, ("a red circle", "a blue square"))
    training = Training(max_steps=3, batch_size=2, learning_rate=1e-2, checkpoint_every=0, device="cpu")
    config = MaskConfig(init_logit=1.0)
    with stopping(stop_after), open_run(folder, {"training": training}) as run:
        return dict(
            train_masks(tiny_pipeline("sd"), examples, config, training, run, progress=False).state_dict()
        )


CONTRACT = Contract(
    files=files,
    good={
        f"{TRAIN} --max-steps 3 --flip --out run": ("run/masks/model.safetensors", "run/metrics.csv"),
        f"generate {DRAW} --masks {{masks}} --stochastic --out out": ("out/0001.png", "out/config.yaml"),
        f"optimise {DRAW} {LEARN} --rewards redness:1,brightness:0.5 --out out": (
            "out/0001.png",
            "out/config.yaml",
        ),
        f"random {DRAW} --keep 0.9 --which largest --last-step 1 --out out": ("out/0001.png",),
        f"compare {DRAW} {LEARN} --masks {{masks}} --best-of 2 --out out": (
            "out/comparison.csv",
            "out/images.png",
            "out/config.yaml",
        ),
        "inspect --masks {masks}": (),
        "bench --width 16 --batch 2 --tokens 4 --repeats 1 --model {model}": (),
    },
    bad=[
        (f"{TRAIN} --threshold 1 --out run", "threshold"),
        (f"{TRAIN} --tau 0 --out run", "tau"),
        (f"{TRAIN} --targets ( --out run", "targets"),
        (f"{TRAIN} --targets nowhere --out run", "nowhere"),
        (f"{TRAIN} --generator released --granularity row --out run", "released"),
        ("train --model {model} --data {empty} --out run", "metadata.jsonl"),
        ("train --model {model} --data {pictures} --size 32 --device cpu --out run", "batch_size"),
        ("train --model missing --data {pictures} --out run", "missing"),
        (f"generate {DRAW} --masks {{others}} --out out", "another model"),
        (f"generate {DRAW} --masks {{empty}} --out out", "config.json"),
        (f"generate {DRAW} --masks {{masks}} --out {{masks}}", "source"),
        (f"optimise {DRAW} --rewards beauty:1 --out out", "beauty"),
        (f"optimise {DRAW} --rewards redness:much --out out", "much"),
        (f"random {DRAW} --keep 0 --out out", "keep"),
        (f"random {DRAW} --first-step 2 --last-step 1 --out out", "first_step"),
        (f"compare {DRAW} --best-of 0 --out out", "best_of"),
        ("inspect --masks {model}", "config.json"),
        ("bench --width 2", "width"),
    ],
    attach={family: partial(check, family) for family in FAMILIES} | {"random": check_random},
    artifacts={"masks": Artifact(save, load)},
    resume={"train": Resume(trained, 2)},
)
