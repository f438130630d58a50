"""What freecache promises beside its windows."""

import json
from pathlib import Path

from noiseworks.kits.contracts import Contract


def files(folder: Path) -> dict[str, Path]:
    """Make prompts, questions, and files that a user could name by mistake."""
    (folder / "prompts.txt").write_text("countdown 3 7 12 = 48 :\nsort 5 3 :\n")
    (folder / "blank.txt").write_text(" \n")
    (folder / "task.jsonl").write_text('{"question": "sort 5 3 :", "answer": "3 5 #### 5"}\n' * 3)
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return {name: folder / name for name in ("prompts.txt", "blank.txt", "task.jsonl", "other")}


def attach(kind: str) -> None:
    """Check that `apply_freecache` changes no text of a one-layer host and leaves the host as it was."""
    import torch
    from noiseworks.freecache import apply_freecache
    from noiseworks.kits.masked_lm import dream_generate, llada_generate, make_dream, make_llada

    ids = {"mask_token_id": 30, "eos_token_id": 28, "pad_token_id": 29}
    model = {"llada": make_llada, "dream": make_dream}[kind](31, d_model=32, n_layers=1, **ids)
    prompts = torch.randint(28, (2, 6), generator=torch.Generator().manual_seed(0))

    def sample():
        if kind == "dream":
            return dream_generate(model, prompts, max_new_tokens=8, steps=8, alg="entropy").sequences
        return llada_generate(model, prompts, gen_length=8, block_length=4).sequences

    before, weights = dict(vars(model)), {name: p.clone() for name, p in model.named_parameters()}
    expected = sample()
    with apply_freecache(model, block_length=4) as handle:
        assert torch.equal(sample(), expected)
        assert handle.calls == 8
    try:
        with apply_freecache(model):
            raise RuntimeError("in the middle")
    except RuntimeError:
        pass
    assert vars(model).keys() == before.keys()
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert torch.equal(sample(), expected)


MODEL = "--model testbed:countdown --device cpu --gen-length 8 --block-length 4"
GUIDE = "--guide testbed:countdown-ar"
GENERATE = f"generate {MODEL} --prompt {{prompts.txt}}"
TIMES = ("times/metrics.csv", "times/config.json")
CONTRACT = Contract(
    files=files,
    attach={"LLaDA": lambda: attach("llada"), "Dream": lambda: attach("dream")},
    good={
        GENERATE: (),
        f"{GENERATE} --no-cache --temperature 0.5 --top-k 5": (),
        f"{GENERATE} --reveal schedule --steps 4 --order entropy --commit stale --refresh-every 1 --sliding 0": (),
        f"{GENERATE} {GUIDE}": (),
        f"{GENERATE} {GUIDE} --no-cache --strategy stochastic --mode speculative --verify 4": (),
        f"compare {MODEL} {GUIDE} --modes none,cache,dual,guide,both --lengths 8 --repeats 1 "
        "--prompt 'countdown 3 7 12 = 48 :' --out times": (*TIMES, "times/completions.json"),
        f"probe {MODEL} --prompt {{prompts.txt}} --out drift": (
            "drift/drift.csv",
            "drift/drift.png",
            "drift/*.json",
        ),
        f"eval {MODEL} --task {{task.jsonl}} --problems 2": (),
        f"eval {MODEL} {GUIDE} --task countdown --problems 2 --examples 64": (),
    },
    bad=[
        ("generate --model missing --prompt x", "missing"),
        ("generate --model {other} --prompt x", "bert"),
        (f"generate {MODEL} --prompt {{blank.txt}}", "prompt"),
        ("generate --model testbed:countdown --prompt x --gen-length 10 --block-length 4", "multiple"),
        (
            "generate --model testbed:countdown --prompt x --gen-length 65536 --block-length 4",
            "the model takes",
        ),
        (f"{GENERATE} --steps 8", "reveal"),
        (f"{GENERATE} --reveal schedule --steps 7", "multiple"),
        (f"{GENERATE} --sliding 2.5", "2.5"),
        (f"{GENERATE} --threshold 1.5", "threshold"),
        (f"{GENERATE} --temperature -1", "temperature"),
        (f"{GENERATE} --order best", "order"),
        (f"{GENERATE} --dtype int8", "dtype"),
        (f"{GENERATE} --chat", "chat template"),
        (f"{GENERATE} --guide missing", "missing"),
        (f"{GENERATE} --guide testbed:countdown", "a causal language model"),
        (f"{GENERATE} {GUIDE} --windows all", "windows"),
        (f"{GENERATE} {GUIDE} --verify 0", "verify"),
        (f"{GENERATE} {GUIDE} --sliding 3", "sliding"),
        (f"{GENERATE} {GUIDE} --temperature 1", "temperature"),
        (f"compare {MODEL} --out times --modes fast", "modes"),
        (f"compare {MODEL} --out times --modes both", "need a guide"),
        (f"compare {MODEL} --out times --lengths 8,x", "8,x"),
        (f"compare {MODEL} --out times --repeats 0", "repeats"),
        (f"compare {MODEL} --out {{prompts.txt}}", "prompts.txt"),
        (f"probe {MODEL} --prompt x --out drift --reveal schedule --steps 1", "steps"),
        (f"eval {MODEL} --task unknown", "unknown task"),
        (f"eval {MODEL} --task countdown --guide missing", "missing"),
        (f"eval {MODEL} --task countdown --problems 0", "problems"),
    ],
)
