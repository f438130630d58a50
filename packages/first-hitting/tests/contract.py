"""What first-hitting promises beside its equations."""

import json
from pathlib import Path

from noiseworks.kits.contracts import Contract


def files(folder: Path) -> dict[str, Path]:
    """Make prompts and files that a user could name by mistake."""
    (folder / "prompts.txt").write_text("countdown 3 7 12 = 48 :\nsort 5 3 :\n")
    (folder / "blank.txt").write_text(" \n")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return {name: folder / name for name in ("prompts.txt", "blank.txt", "other")}


MODEL = "--model testbed:countdown --device cpu"
SAMPLE = f"sample {MODEL} --prompt {{prompts.txt}}"
CONTRACT = Contract(
    files=files,
    good={
        f"{SAMPLE} --gen-length 4": (),
        f"{SAMPLE} --gen-length 4 --variant parallel --steps 2 --out out.jsonl": ("out.jsonl",),
        f"{SAMPLE} --gen-length 4 --method gumbel32": (),
        f"compare {MODEL} --gen-length 4 --samples 2 --grid 4,8 --out table.json": ("table.json",),
        "precision --dtype float32 --delta 1e-6": (),
        "precision --probs zipf:100": (),
        f"elbo {MODEL} --prompt {{prompts.txt}} --draws 1": (),
    },
    bad=[
        ("precision --probs 0.5,x", "probs"),
        ("precision --probs 0.5,0.6", "sum to 1"),
        ("precision --probs zipf:²", "probs"),
        (f"{SAMPLE} --steps 2", "exact"),
        ("sample --model missing --prompt x", "missing"),
        ("sample --model {other} --prompt x", "bert"),
        (f"sample {MODEL} --prompt {{blank.txt}}", "prompt"),
        (f"{SAMPLE} --out {{prompts.txt}}/out.jsonl", "prompts.txt"),
        (f"compare {MODEL} --grid 4,b", "4,b"),
        (f"elbo {MODEL} --prompt ''", "prompt"),
    ],
)
