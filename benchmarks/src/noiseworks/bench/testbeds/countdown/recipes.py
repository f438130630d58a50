"""Training recipes of the `countdown` models."""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.bench.testbeds.countdown import evaluation
from noiseworks.bench.testbeds.countdown import networks as nets
from noiseworks.bench.testbeds.countdown.tasks import TASKS, problems
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, make_tokenizer
from noiseworks.bench.testbeds.training import Captions, Recipe

if TYPE_CHECKING:
    import lightning as L

ROWS, TRAIN_SEED, BATCH, RATE = 400_000, 0, 64, 3e-3
SHARES = {"countdown": 0.9, "sort": 0.05, "modular": 0.05}


def prepare(captions: Captions, rows: int | None) -> dict[str, torch.Tensor]:
    """Return rows of a question and its answer, filled with ends: int16 [n, PROMPT + ANSWER]."""
    from noiseworks.bench.testbeds.countdown.training import ANSWER, PROMPT

    tokenizer, tables = make_tokenizer(), []
    for task in sorted(SHARES, key=TASKS.index):
        drawn = problems(task, int(SHARES[task] * (rows or ROWS)), TRAIN_SEED, "train")
        ids = tokenizer([f"{problem.prompt} {problem.answer}" for problem in drawn])["input_ids"]
        filled = [row + [EOS_ID] * (PROMPT + ANSWER - len(row)) for row in ids]
        tables.append(torch.tensor(filled, dtype=torch.int16))
    return {"ids": torch.cat(tables)}


def build_masked(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the LLaDA-style model under the masked loss."""
    from noiseworks.bench.testbeds.countdown.training import TextTrainer

    return TextTrainer(nets.make_masked(), learning_rate=RATE)


def build_shifted(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the Dream-style model under the masked loss on aligned logits."""
    from noiseworks.bench.testbeds.countdown.training import TextTrainer

    return TextTrainer(nets.make_shifted(), shift=1, learning_rate=RATE)


def build_causal(data: dict[str, torch.Tensor]) -> "L.LightningModule":
    """Return the companion under the next-token loss."""
    from noiseworks.bench.testbeds.countdown.training import TextTrainer

    return TextTrainer(nets.make_causal(), causal=True, learning_rate=RATE)


def publish(module: "L.LightningModule", folder: Path) -> None:
    """Write the averaged weights in half precision, and the tokenizer, in transformers' format.

    Half precision saves room in the repository; the configuration says that the model runs in single precision.
    """
    copy.deepcopy(module.average).cpu().half().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    make_tokenizer().save_pretrained(folder)


_DATA = {"task": "countdown with three numbers, sorting, modular arithmetic", "shares": SHARES}


def _recipe(name: str, kind: str, about: str, build, tune, measure) -> Recipe:
    facts = {"name": name, "class": kind, "about": about, "data": _DATA}
    return Recipe(
        prepare=prepare,
        build=build,
        publish=publish,
        tune=tune,
        measure=measure,
        learning_rate=RATE,
        batch_size=BATCH,
        rows=ROWS,
        about=facts,
    )


RECIPES = {
    "countdown": _recipe(
        "countdown",
        "LLaDAModelLM",
        "A masked diffusion language model in LLaDA's architecture that answers small problems.",
        build_masked,
        evaluation.tune_masked,
        evaluation.measure_masked,
    ),
    "countdown-dream": _recipe(
        "countdown-dream",
        "DreamModel",
        "A masked diffusion language model in Dream's architecture (shifted logits) on the same problems.",
        build_shifted,
        evaluation.tune_masked,
        evaluation.measure_masked,
    ),
    "countdown-ar": _recipe(
        "countdown-ar",
        "LlamaForCausalLM",
        "A causal companion on the same tokens, to guide the masked models.",
        build_causal,
        evaluation.tune_causal,
        evaluation.measure_causal,
    ),
}
