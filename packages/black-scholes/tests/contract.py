"""What black-scholes promises beside its equations."""

from functools import partial
from pathlib import Path

from noiseworks.kits.contracts import Contract

DRAW = "--model {model} --num-inference-steps 4 --device cpu"
PAIR = '--prompts "a red circle | a blue square"'
WATCH = "--scorer {clip}"
FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit", "instruct-pix2pix")
WHOLE = ("sd", "sd3")  # a U-Net and a transformer that are held to all of `check_attach`


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, a CLIP model, and files that a user could name by mistake."""
    from noiseworks.kits.diffusers_hosts import save_tiny_clip, tiny_pipeline

    tiny_pipeline("sd").save_pretrained(folder / "model")
    tiny_pipeline("dit").save_pretrained(folder / "dit")
    save_tiny_clip(folder / "clip")
    (folder / "pairs.txt").write_text("a red circle | a blue square\na blue circle | a red square\n")
    (folder / "uneven.txt").write_text("red | blue\nred | blue | small\n")
    (folder / "strikes.json").write_text('{"strikes": {"a red circle": 30.0}}')
    (folder / "wrong.json").write_text('{"strikes": {"a red circle": 0}}')
    names = ("model", "dit", "clip", "pairs.txt", "uneven.txt", "strikes.json", "wrong.json")
    return {name: folder / name for name in names}


def check(family: str) -> None:
    """Attach a blend that gives the prompt all the weight."""
    from noiseworks.black_scholes import Linear, attach
    from noiseworks.kits.testing import check_attach, diffusion_host

    other = 3 if family == "dit" else "a small red square"
    host = diffusion_host(family, steps=2)
    check_attach(lambda pipe: attach(pipe, [other], Linear((1.0, 0.0))), host, brief=family not in WHOLE)


MADE = ("out/0000.png", "out/trace.csv", "out/trace.png", "out/config.json")
CONTRACT = Contract(
    files=files,
    good={
        f"generate {DRAW} {PAIR} {WATCH} --strikes {{strikes.json}} --out out": MADE,
        f"generate {DRAW} --prompts {{pairs.txt}} --policy linear --out out": (*MADE, "out/0001.png"),
        f'generate {DRAW} --prompts "a [red|blue] circle" --policy syntax --out out': MADE,
        f"compare {DRAW} {PAIR} {WATCH} --policies plain,joined,switch,bs,softmin --window 2 --out out": (
            "out/comparison.csv",
            "out/images.png",
            "out/config.json",
        ),
        f"calibrate {DRAW} --prompts {{pairs.txt}} {WATCH} --images 2 --out strikes.json": ("strikes.json",),
        "price --spot 25": (),
    },
    bad=[
        (f"generate {DRAW} {PAIR} --out out", "--scorer"),
        (f"generate {DRAW} {PAIR} --scorer missing --out out", "missing"),
        (f"generate {DRAW} {PAIR} --scorer {{model}} --out out", "CLIP"),
        (f"generate {DRAW} --prompts circle {WATCH} --out out", "concepts"),
        (f"generate {DRAW} --prompts {{uneven.txt}} {WATCH} --out out", "concepts"),
        (f"generate {DRAW} --prompts circle --policy syntax --out out", "brackets"),
        (f"generate {DRAW} {PAIR} {WATCH} --strikes {{wrong.json}} --out out", "strike"),
        (f"generate {DRAW} {PAIR} {WATCH} --strikes {{pairs.txt}} --out out", "strikes"),
        (f"generate {DRAW} {PAIR} {WATCH} --strike 0 --out out", "strike"),
        (f"generate {DRAW} {PAIR} {WATCH} --window 1 --out out", "window"),
        (f"generate {DRAW} {PAIR} {WATCH} --score-every 0 --out out", "score_every"),
        (
            f"generate {DRAW} {PAIR} {WATCH} --guidance-scale 1 --negative-prompt red --out out",
            "negative_prompt",
        ),
        (f"generate --model {{dit}} {PAIR} {WATCH} --out out", "dit"),
        (f"compare {DRAW} {PAIR} --out out", "--scorer"),
        (f"compare {DRAW} {PAIR} {WATCH} --policies bs,best --out out", "best"),
        (f"compare {DRAW} {PAIR} {WATCH} --judge missing --out out", "missing"),
        (f"calibrate {DRAW} {PAIR} {WATCH} --images 0 --out strikes.json", "images"),
        (f"calibrate {DRAW} {PAIR} {WATCH} --quantile 2 --out strikes.json", "quantile"),
        (f"calibrate {DRAW} {PAIR} {WATCH} --out strikes.txt", "json"),
        ("price --spot 0", "spot"),
        ("price --spot 25 --sigma -1", "sigma"),
    ],
    attach={family: partial(check, family) for family in FAMILIES},
)
