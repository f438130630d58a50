"""What diffusionguard promises beside its equations."""

from pathlib import Path

from noiseworks.kits.contracts import Contract


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny inpainting pipeline, one for text, two pictures with masks, and what a user could name by mistake."""
    import numpy as np
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from PIL import Image

    tiny_pipeline("sd-inpaint").save_pretrained(folder / "model")
    tiny_pipeline("sd-inpaint", seed=1).save_pretrained(folder / "other")
    tiny_pipeline("sd").save_pretrained(folder / "text")
    rng = np.random.default_rng(0)
    mask = np.zeros((34, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for stem in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (34, 32, 3), dtype=np.uint8)).save(
            folder / "images" / f"{stem}.png"
        )
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    Image.fromarray(mask[:20]).save(folder / "small.png")
    Image.new("L", (32, 34), 255).save(folder / "full.png")
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    names = ("model", "other", "text", "images", "masks", "small.png", "full.png", "text.png", "empty")
    return {name: folder / name for name in names} | {"one.png": folder / "images" / "one.png",
                                                      "mask.png": folder / "masks" / "one.png"}  # fmt: skip


HOST = "--model {model} --device cpu"
QUICK = "--steps 2 --pool 2"
PROTECT = f"protect {HOST} --images {{images}} --masks {{masks}} {QUICK}"
EDIT = "--num-inference-steps 2 --prompt disc --purifiers jpeg-75"
CONTRACT = Contract(
    files=files,
    good={
        f"{PROTECT} --out out": ("out/one.png", "out/two.png", "out/metrics.csv", "out/before_after.png"),
        f"protect {HOST} --images {{one.png}} --out out --steps 1 --eps-255 8": ("out/one.png",),
        "mask --mask {mask.png} --out shrunk.png --count 2": ("shrunk.png",),
        f"eval {HOST} --images {{images}} --protected {{images}} --masks {{masks}} --out out {EDIT}": (
            "out/edits.csv",
            "out/edits.png",
        ),
        f"compare {HOST} --images {{images}} --masks {{masks}} --out out {EDIT} {QUICK}"
        " --methods random,diffusionguard --transfer {other} --hardened jpeg,none": (
            "out/comparison.csv",
            "out/diffusionguard.png",
            "out/diffusionguard-transfer.png",
        ),
    },
    bad=[
        (f"{PROTECT} --out out --eps-255 200", "eps_255"),
        (f"{PROTECT} --out out --norm l3", "norm"),
        (f"{PROTECT} --out {{images}}", "no training run"),
        (f"protect {HOST} --images {{empty}} --out out", "no pictures"),
        (f"protect {HOST} --images {{text.png}} --out out", "no picture"),
        (f"protect {HOST} --images {{images}} --masks {{small.png}} --out out", "32x20"),
        (f"protect {HOST} --images {{images}} --masks {{full.png}} --out out", "everything"),
        ("protect --model missing --images {images} --out out", "missing"),
        ("protect --model {text} --images {images} --out out --device cpu", "inpainting"),
        (f"compare {HOST} --images {{images}} --masks {{masks}} --out out --methods magic", "magic"),
        (f"compare {HOST} --images {{images}} --masks {{masks}} --out out --purifiers bleach", "bleach"),
        (f"compare {HOST} --images {{images}} --masks {{masks}} --out out --transfer missing", "missing"),
        (
            "eval --model {text} --device cpu --images {images} --protected {images} --masks {masks} --out out",
            "takes no mask",
        ),
        (f"{PROTECT} --out out --hardened bleach", "bleach"),
        (f"eval {HOST} --images {{images}} --protected {{empty}} --masks {{masks}} --out out", "one.png"),
        ("mask --mask {full.png} --out shrunk.png", "everything"),
        ("mask --mask {mask.png} --out shrunk.gif", "shrunk.gif"),
    ],
)
