"""Testbed `countdown`: small problems with verifiable answers, and masked language models that solve some.

- `tasks`: problems by (task, n, seed, split), their text, and `verify`.
- `expressions`: exact arithmetic from text, without evaluating it as code.
- `chain`: texts of a known distribution, whose likelihood and conditionals are exact.
- `tokens`: the tokenizer, one token a number or sign.
- `networks`, `training`, `evaluation`, `recipes`: the shipped models and how they are trained and measured.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.countdown.evaluation import accuracy, few_shot_prompts
    from noiseworks.bench.testbeds.countdown.tasks import TASKS, Problem, problems, verify
    from noiseworks.bench.testbeds.countdown.tokens import make_tokenizer

_HOME = {
    "TASKS": "tasks",
    "Problem": "tasks",
    "problems": "tasks",
    "verify": "tasks",
    "make_tokenizer": "tokens",
    "accuracy": "evaluation",
    "few_shot_prompts": "evaluation",
}

__all__ = ["TASKS", "Problem", "accuracy", "few_shot_prompts", "make_tokenizer", "problems", "verify"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
