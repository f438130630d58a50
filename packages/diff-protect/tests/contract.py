"""What diff-protect promises beside its equations."""

from pathlib import Path

from noiseworks.kits.contracts import Contract


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, two pictures, and what a user could name by mistake."""
    import numpy as np
    from noiseworks.kits.diffusers_hosts import tiny_pipeline
    from PIL import Image

    tiny_pipeline("sd").save_pretrained(folder / "model")
    tiny_pipeline("sd", seed=1).save_pretrained(folder / "other")
    tiny_pipeline("sd-inpaint").save_pretrained(folder / "masked")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for stem in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (32, 34, 3), dtype=np.uint8)).save(
            folder / "images" / f"{stem}.png"
        )
    (folder / "text.png").write_text("no picture")
    (folder / "empty").mkdir()
    names = ("model", "other", "masked", "images", "text.png", "empty")
    return {name: folder / name for name in names} | {"one.png": folder / "images" / "one.png"}


HOST = "--model {model} --device cpu"
EDIT = "--num-inference-steps 4 --strengths 0.5 --purifiers jpeg-75"
PROTECT = f"protect {HOST} --images {{images}}"
CONTRACT = Contract(
    files=files,
    good={
        f"{PROTECT} --steps 2 --out out": (
            "out/one.png",
            "out/two.png",
            "out/metrics.csv",
            "out/before_after.png",
        ),
        f"{PROTECT} --steps 1 --method sdst- --target {{one.png}} --out out": ("out/one.png",),
        f"{PROTECT} --steps 1 --method sds-z --out out": ("out/one.png",),
        f"{PROTECT} --steps 1 --hardened jpeg,none --out out": ("out/one.png",),
        f"eval {HOST} --images {{images}} --protected {{images}} --out out {EDIT}": (
            "out/edits.csv",
            "out/strength-0.5.png",
        ),
        f"compare {HOST} --images {{images}} --steps 1 --out out {EDIT} --methods random,sds-"
        " --transfer {other}": ("out/comparison.csv", "out/sds-.png", "out/sds--transfer.png"),
        f"analyse {HOST} --images {{images}} --steps 1 --out found.json": ("found.json",),
    },
    bad=[
        (f"{PROTECT} --out out --eps-255 200", "eps_255"),
        (f"{PROTECT} --out out --method magic", "magic"),
        (f"{PROTECT} --out out --rate 0", "rate"),
        (f"{PROTECT} --out out --target gone.png", "gone.png"),
        (f"{PROTECT} --out {{images}}", "no training run"),
        (f"protect {HOST} --images {{empty}} --out out", "no pictures"),
        (f"protect {HOST} --images {{text.png}} --out out", "no picture"),
        ("protect --model missing --images {images} --out out", "missing"),
        (f"compare {HOST} --images {{images}} --out out --methods magic", "magic"),
        (f"compare {HOST} --images {{images}} --out out --strengths 0,2", "strengths"),
        (f"compare {HOST} --images {{images}} --out out --purifiers bleach", "bleach"),
        (f"compare {HOST} --images {{images}} --out out --transfer missing", "missing"),
        (f"compare {HOST} --images {{images}} --out out --transfer {{masked}}", "under masks"),
        (f"{PROTECT} --out out --hardened bleach", "bleach"),
        (f"eval {HOST} --images {{images}} --protected {{empty}} --out out", "one.png"),
        (f"analyse {HOST} --images {{images}} --out found.txt", "found.txt"),
    ],
)
