"""What the cards of the `countdown` models state: exact answers, counted by the verifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.countdown.tasks import Problem, problems, verify
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, make_tokenizer
from torch import nn

ANSWER_LENGTH = 16


def answers(tokenizer: Any, completions: torch.Tensor) -> list[str]:
    """Return the text of completions [n, G] up to their first end."""
    texts = []
    for row in completions.tolist():
        texts.append(tokenizer.decode(row[: row.index(EOS_ID)] if EOS_ID in row else row))
    return texts


def right(tokenizer: Any, completions: torch.Tensor, asked: Sequence[Problem]) -> np.ndarray:
    """Return which completions [n, G] answer their problems, bool [n]."""
    texts = answers(tokenizer, completions)
    return np.array([verify(problem, text) for problem, text in zip(asked, texts, strict=True)])


def few_shot_prompts(asked: Sequence[Problem], tokens: int, seed: int) -> list[str]:
    """Return prompts that show solved problems before each question, about `tokens` tokens long, never longer.

    Args:
        asked: The questions.
        tokens: Length to fill.
        seed: Of the examples, which are training problems of the same task.
    """
    tokenizer = make_tokenizer()
    prompts = []
    for i, problem in enumerate(asked):
        shown = problems(problem.task, tokens // 16, seed + i, "train")
        prompt, room = [problem.prompt], tokens - len(tokenizer(problem.prompt).input_ids)
        for one in shown:
            # The row of a training sequence: question, answer, ends up to the answer's length.
            length = len(tokenizer(one.answer).input_ids)
            text = " ".join([one.prompt, one.answer, *["<eos>"] * (ANSWER_LENGTH - length)])
            room -= len(tokenizer(text).input_ids)
            if room < 0:
                break
            prompt.insert(0, text)
        prompts.append(" ".join(prompt))
    return prompts


@torch.no_grad()
def accuracy(
    model: nn.Module,
    asked: Sequence[Problem],
    *,
    steps: int = 16,
    prompts: Sequence[str] | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Return which problems a masked model answers, greedily and surest tokens first, bool [n].

    An answer has `ANSWER_LENGTH` tokens, as in training. The steps of a `countdown4` problem take 17, so of that
    task only answers in one expression are counted.

    Args:
        model: A LLaDA or Dream model of the testbed.
        asked: The problems.
        steps: Network calls for the 16 tokens of an answer.
        prompts: Longer prompts in place of the questions.
        batch_size: Problems at once.
    """
    from noiseworks.kits.masked_lm import llada_generate

    tokenizer, found = make_tokenizer(), []
    texts = [problem.prompt for problem in asked] if prompts is None else list(prompts)
    for start in range(0, len(asked), batch_size):
        part = tokenizer(texts[start : start + batch_size], padding=True, return_tensors="pt")
        output = llada_generate(
            model,
            part["input_ids"],
            attention_mask=part["attention_mask"],
            gen_length=ANSWER_LENGTH,
            steps=steps,
        )
        completions = output.sequences[:, part["input_ids"].shape[1] :]
        found.append(right(tokenizer, completions, asked[start : start + batch_size]))
    return np.concatenate(found)


@torch.no_grad()
def causal_accuracy(
    model: nn.Module, asked: Sequence[Problem], *, prompts: Sequence[str] | None = None
) -> np.ndarray:
    """Return which problems the causal companion answers greedily, bool [n].

    Args:
        model: The companion.
        asked: The problems.
        prompts: Longer prompts in place of the questions.
    """
    tokenizer = make_tokenizer()
    texts = [problem.prompt for problem in asked] if prompts is None else list(prompts)
    part = tokenizer(texts, padding=True, return_tensors="pt")
    output = model.generate(
        input_ids=part["input_ids"],
        attention_mask=part["attention_mask"],
        max_new_tokens=ANSWER_LENGTH,
        do_sample=False,
    )
    return right(tokenizer, output[:, part["input_ids"].shape[1] :], asked)


def load(folder: Path) -> nn.Module:
    """Return a published masked model."""
    from noiseworks.kits.masked_lm import load_host

    return load_host(folder, dtype=torch.float32)[0]


def load_causal(folder: Path) -> nn.Module:
    """Return the published companion."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tune_masked(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of test problems answered at 16 and at 8 steps."""
    model, asked = load(folder), problems("countdown", n, seed, "test")
    return {
        "share_right": float(accuracy(model, asked).mean()),
        "share_right_8": float(accuracy(model, asked, steps=8).mean()),
    }


def tune_causal(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of test problems answered."""
    asked = problems("countdown", n, seed, "test")
    return {"share_right": float(causal_accuracy(load_causal(folder), asked).mean())}


def measure_masked(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures of a masked model.

    Args:
        folder: The model's folder.
        n: Problems of each figure, a quarter of it where prompts are long.
        seed: Of the problems.
    """
    model, figures = load(folder), {}
    asked = problems("countdown", n, seed, "test")
    for steps in (16, 8, 4):
        figures[f"countdown answered, {steps} steps"] = figure(accuracy(model, asked, steps=steps))
    known = problems("countdown", n, seed, "train")
    figures["countdown answered, training problems, 16 steps"] = figure(accuracy(model, known))
    for tokens in (512, 1024):
        few = asked[: max(1, n // 4)]
        prompts = few_shot_prompts(few, tokens, seed)
        found = accuracy(model, few, prompts=prompts, batch_size=32)
        figures[f"countdown answered, prompts of {tokens} tokens"] = figure(found)
    for task in ("sort", "modular"):
        figures[f"{task} answered, 16 steps"] = figure(accuracy(model, problems(task, n, seed, "test")))
    return figures


def measure_causal(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures of the companion.

    Args:
        folder: The model's folder.
        n: Problems of the first figure; a quarter of them get long prompts.
        seed: Of the problems.
    """
    model, asked = load_causal(folder), problems("countdown", n, seed, "test")
    figures = {"countdown answered": figure(causal_accuracy(model, asked))}
    few = asked[: max(1, n // 4)]
    found = causal_accuracy(model, few, prompts=few_shot_prompts(few, 512, seed))
    return figures | {"countdown answered, prompts of 512 tokens": figure(found)}
