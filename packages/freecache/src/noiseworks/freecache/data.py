"""Prompts, and tasks with answers that can be checked, for the commands."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.output import read_text
from noiseworks.kits.masked_lm import HostSpec, pad_prompts
from torch import Tensor

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TURN, _NEXT = "Question: {}\nAnswer: {}\n\n", "Question:"
_SHOWN = 64  # solved questions that prompts take theirs from


@dataclass(frozen=True)
class Question:
    """A prompt, and whether a text answers it.

    Attributes:
        prompt: The prompt.
        right: Text -> whether it is a right answer.
    """

    prompt: str
    right: Callable[[str], bool]


def encode(
    tokenizer: Any, prompts: Sequence[str], spec: HostSpec, device: torch.device, chat: bool
) -> tuple[Tensor, Tensor]:
    """Return prompts as left-padded ids and their mask, int64 [B, P].

    Args:
        tokenizer: The model's tokenizer.
        prompts: Texts.
        spec: The model's contract.
        device: Where the result is put.
        chat: Whether to wrap each text in the tokenizer's chat template, as a user's turn.

    Raises:
        InputError: When the tokenizer has no chat template, or a prompt no tokens.
    """
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise InputError("the tokenizer has no chat template; leave out --chat")
    if chat:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = [
            tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns
        ]
    ids = [tokenizer(prompt, add_special_tokens=not chat)["input_ids"] for prompt in prompts]
    padded, mask = pad_prompts(ids, spec.pad_id)
    return padded.to(device), mask.to(device)


def texts(tokenizer: Any, completions: Tensor, spec: HostSpec) -> list[str]:
    """Return the texts of completions [B, G] up to their first end; ids that are no tokens are left out."""
    found = []
    for row in completions.tolist():
        stop = next((i for i, token in enumerate(row) if token in spec.eos_ids), len(row))
        limit = len(tokenizer) if spec.vocab_limit is None else spec.vocab_limit
        found.append(tokenizer.decode([token for token in row[:stop] if token < limit]))
    return found


def random_prompts(spec: HostSpec, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Return prompts of random tokens without masks, padding and ends, int64 [batch, length]."""
    special = {spec.mask_id, spec.pad_id, *spec.eos_ids}
    limit = max(special) + 2 if spec.vocab_limit is None else spec.vocab_limit
    plain = torch.tensor([token for token in range(limit) if token not in special])
    return plain[torch.randint(len(plain), (batch, length), generator=generator)]


def load_task(name: str, count: int, seed: int, examples: int) -> list[Question]:
    """Return the questions of a task.

    Args:
        name: `countdown`, or a JSON-lines file with `question` and `answer`.
        count: How many, from the start of the file.
        seed: Of countdown's problems.
        examples: Tokens of solved problems before each of countdown's questions; 0 for none.

    Raises:
        InputError: When the file is missing or a line of it is no question, or for a number out of range.
    """
    check_number("problems", count, low=1, integer=True)
    check_number("examples", examples, low=0, integer=True)
    if name == "countdown":
        return _countdown(count, seed, examples)
    if not Path(name).is_file():
        raise InputError(
            f"unknown task {name!r}: name countdown, or a JSON-lines file with question and answer"
        )
    if examples:
        raise InputError("examples go with countdown; write them into the questions of a file")
    pairs = _read_pairs(name)[:count]
    return [Question(question, partial(_ends_with_number, last_number(answer))) for question, answer in pairs]


def _read_pairs(name: str) -> list[tuple[str, str]]:
    """Return the questions and answers of a JSON-lines file."""
    found = []
    for number, line in enumerate(read_text(name).splitlines(), start=1):
        try:
            record = json.loads(line)
            question, answer = str(record["question"]), str(record["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"line {number} of {name} holds no question and answer ({error})") from error
        if last_number(answer) is None:
            raise InputError(f"the answer in line {number} of {name} holds no number")
        found.append((question, answer))
    if not found:
        raise InputError(f"{name} holds no questions")
    return found


def shown_questions(name: str, tokenizer: Any, count: int, tokens: int, seed: int) -> list[Question]:
    """Return questions of a JSON-lines file, each behind solved ones of the same file.

    Args:
        name: The file, with `question` and `answer`.
        tokenizer: What lengths are counted with.
        count: How many questions, drawn without replacement.
        tokens: Length that a prompt is filled up to, never longer unless the question alone is.
        seed: Of the draws.

    Raises:
        InputError: When the file is missing, a line of it is no question, or there are too few.
    """
    if not Path(name).is_file():
        raise InputError(f"no file of questions at {name}; name a JSON-lines file with question and answer")
    pairs = _read_pairs(name)
    if len(pairs) <= count:
        raise InputError(f"{name} holds {len(pairs)} questions; need more than {count}, to show solved ones")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    shown = [_TURN.format(*pairs[i]) for i in order[count : count + _SHOWN]]
    lengths = [len(tokenizer(text).input_ids) for text in shown]
    found = []
    for place, i in enumerate(order[:count]):
        question, answer = pairs[i]
        prompt = _TURN.format(question, "").rstrip()
        room = tokens - len(tokenizer(prompt).input_ids)
        for k in range(place, place + len(shown)):
            room -= lengths[k % len(shown)]
            if room < 0:
                break
            prompt = shown[k % len(shown)] + prompt
        found.append(Question(prompt, partial(_answers_with_number, last_number(answer))))
    return found


def last_number(text: str) -> float | None:
    """Return the last number in a text, or None."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _ends_with_number(number: float | None, text: str) -> bool:
    return last_number(text) == number


def _answers_with_number(number: float | None, text: str) -> bool:
    # What a model writes after its answer is the next question.
    return last_number(text.split(_NEXT)[0]) == number


def _countdown(count: int, seed: int, examples: int) -> list[Question]:
    try:
        from noiseworks.bench.testbeds import countdown
    except ImportError as error:
        raise InputError("the task countdown needs noiseworks-bench; install it") from error
    asked = countdown.problems("countdown", count, seed, "test")
    prompts = [problem.prompt for problem in asked]
    if examples:
        prompts = countdown.few_shot_prompts(asked, examples, seed)
    return [
        Question(prompt, partial(countdown.verify, problem))
        for prompt, problem in zip(prompts, asked, strict=True)
    ]
