"""What mdpo promises beside its equations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume


def files(folder: Path) -> dict[str, Path]:
    """Make data, a selection and files that a user could name by mistake."""
    (folder / "pool.jsonl").write_text(
        '{"input": "3,7,12", "output": "48"}\n{"input": "1,2,3", "output": "6"}\n'
    )
    (folder / "math.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    (folder / "broken.jsonl").write_text("{")
    trace = {
        "kind": "mdpo/trace",
        "mask_id": 2,
        "inputs": [[[2]]],
        "predictions": [[[5]]],
        "scores": [[[0.5]]],
    }
    (folder / "trace.json").write_text(json.dumps(trace | {"final": [[5]], "words": {"5": "a"}}))
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    names = ("pool.jsonl", "math.jsonl", "broken.jsonl", "trace.json", "other", "full")
    return {name: folder / name for name in names}


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train four rounds with a reference that moves, or stop before the end."""
    return train(folder, stop_after, reference_sync_every=2, warmup_steps=2)


def resumed_adapter(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train adapters with dropout."""
    return train(folder, stop_after, lora_rank=2, lora_dropout=0.1)


def train(folder: Path, stop_after: int | None, **changes: Any) -> Mapping[str, Any]:
    """Return the state after training an untrained model of the testbed's tokenizer."""
    from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
    from noiseworks.kits.masked_lm import make_llada
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.mdpo import MDPOConfig, MDPOTrainer, RolloutDecoding

    tokenizer = make_tokenizer()
    ids = {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    model = make_llada(len(tokenizer), d_model=32, n_layers=1, n_heads=2, **ids)
    rows = [{"prompt": f"sort {i} {j} :"} for i in range(4) for j in (3, 12)]
    config = MDPOConfig(
        decoding=RolloutDecoding(8, 8, 4, 1.0),
        max_steps=4,
        batch_size=2,
        num_generations=4,
        sample_train_steps=2,
        learning_rate=1e-3,
        device="cpu",
        checkpoint_every=0,
        **changes,
    )

    def reward(prompts, completions, **columns):
        return [len(text) / 40 for text in completions]

    trainer = MDPOTrainer(model, tokenizer, [reward], config, rows)
    with open_run(folder, {"config": config}) as run, stopping(stop_after):
        trainer.fit(run, progress=False)
    return trainer.state_dict()["model"]


MODEL = "--model testbed:countdown"
TINY = "--gen-length 16 --block-length 16 --steps 4"
TRAIN = f"train {MODEL} --data {{pool.jsonl}} {TINY} --temperature 1 --num-generations 2 --batch-size 2 --device cpu"
CONTRACT = Contract(
    files=files,
    good={
        f"generate {MODEL} --prompt 'countdown 3 7 12 = 48 :' {TINY} --trace trace.json": ("trace.json",),
        f"compare {MODEL} --prompt 'countdown 3 7 12 = 48 :' {TINY} --out table.json": ("table.json",),
        f"eval {MODEL} --data {{pool.jsonl}} {TINY} --out eval.json": ("eval.json",),
        f"select {MODEL} --data {{pool.jsonl}} {TINY} --out selection.json": ("selection.json",),
        f"{TRAIN} --sample-train-steps 2 --max-steps 1 --out run": ("run/config.json", "run/model/*"),
        "viz {trace.json} --out page.html": ("page.html",),
    },
    bad=[
        (f"generate {MODEL} --prompt x --gen-length 9 --block-length 4", "gen_length"),
        (f"generate {MODEL} --prompt '' {TINY}", "no tokens"),
        (f"generate {MODEL} --prompt x --top-p 2", "top_p"),
        (f"generate {MODEL} --prompt x --schedule square", "square"),
        (f"compare {MODEL} --prompt '' {TINY}", "no tokens"),
        (f"compare {MODEL} --prompt x --remask low_confidence", "both"),
        ("compare --model missing --prompt x", "missing"),
        ("generate --model missing --prompt x", "missing"),
        ("generate --model {other} --prompt x", "bert"),
        (f"eval {MODEL} --task sudoku", "sudoku"),
        (f"eval {MODEL} --task rows --data {{pool.jsonl}}", "reward"),
        (f"eval {MODEL} --data {{math.jsonl}}", "input"),
        (f"eval {MODEL} --data {{broken.jsonl}}", "broken.jsonl"),
        (f"{TRAIN} --sample-train-steps 2 --out {{full}}", "thesis.tex"),
        (f"{TRAIN} --out run --sample-train-steps 5", "sample_train_steps"),
        (
            f"{TRAIN} --sample-train-steps 2 --temperature 0 --out run".replace("--temperature 1 ", ""),
            "temperature",
        ),
        (f"{TRAIN} --out run --sample-train-steps 2 --selection {{math.jsonl}}", "math.jsonl"),
        (f"{TRAIN} --out run --sample-train-steps 2 --lora-rank 2 --lora-targets nothing", "nothing"),
        (f"{TRAIN} --out run --sample-train-steps 2 --eval-every 2", "eval_data"),
        ("viz {math.jsonl}", "trace"),
        ("viz {trace.json} --out page.json", ".html"),
    ],
    resume={"whole": Resume(resumed, 3), "adapter": Resume(resumed_adapter, 2)},
)
