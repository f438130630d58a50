"""Verifiable rewards: `f(prompts, completions, **columns) -> list[float]`, and how several are combined.

Text that a model wrote is parsed, never evaluated as code; the parsers' time is bounded by the text's length.
"""

import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError, NoiseworksError
from noiseworks.mdpo.arithmetic import ArithmeticSyntaxError, evaluate, numbers_in

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")


MAX_STEPS = 64
"""Steps of a Countdown answer that are looked at."""


class RewardFunction(Protocol):
    """What a reward is: one number a completion; NaN says that it does not apply."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float]:
        """Score completions; `columns` are the data's other columns, one value a completion."""
        ...


class RewardTimeoutError(NoiseworksError, TimeoutError):
    """A reward function that did not return in time: the message names it and the limit."""


def extract_answer(text: str) -> str:
    r"""Return the answer in a completion: the last \boxed{...}, else <answer>...</answer>, else all of it."""
    starts = list(_BOXED.finditer(text))
    if starts:
        begin, depth = starts[-1].end(), 1
        for position in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[begin:position].strip()
    found = _ANSWER.findall(text)
    return (found[-1] if found else text).strip()


def normalize_math(text: str) -> str:
    """Return an answer without what does not change its meaning: dollar signs, spacing, units, text commands."""
    text = text.strip().strip("$").rstrip(".").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[,;:! ]|\\(?:q?quad)|~", "", text)
    text = text.replace("\\%", "").replace("%", "").replace("\\$", "").replace("^{\\circ}", "")
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\div", "/").replace("−", "-")
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text.strip())
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return _FRACTION.sub(lambda m: f"(({m[1] or m[2]})/({m[3] or m[4]}))", text).strip()


def _value(text: str) -> Fraction | None:
    try:
        return evaluate(text)
    except ArithmeticSyntaxError:
        pass
    number = re.match(r"^([-+]?[\d.]+)\s*[a-zA-Z ]+$", text)
    try:
        return evaluate(number[1]) if number else None
    except ArithmeticSyntaxError:
        return None


def math_equal(answer: str, solution: str) -> bool:
    """Return whether two answers mean the same: the same exact number, else the same normalised text.

    Args:
        answer: A completion, or the answer in it.
        solution: The right answer, or a solution that holds it.
    """
    first, second = (normalize_math(extract_answer(text[-4096:])) for text in (answer, solution))
    values = _value(first), _value(second)
    if None not in values:
        return abs(values[0] - values[1]) <= Fraction(1, 10**6) * max(1, abs(values[1]))
    return bool(second) and re.sub(r"\s", "", first) == re.sub(r"\s", "", second)


def math_reward(
    prompts: Sequence[str], completions: Sequence[str], *, solution: Sequence[str]
) -> list[float]:
    """Return 1 where a completion's answer equals the column `solution`, else 0."""
    return [float(math_equal(text, right)) for text, right in zip(completions, solution, strict=True)]


def solves_countdown(text: str, numbers: Sequence[int], target: int) -> bool:
    """Return whether the answer in a text makes `target` out of all `numbers`, each used once.

    Args:
        text: A completion. Its answer is one expression, perhaps with `= result` behind it, or steps whose
            results are used later: `7 - 3 = 4 , 4 * 12 = 48`; then every step must hold.
        numbers: The given numbers.
        target: What they must make.
    """
    answer = extract_answer(text)
    for command, sign in (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*")):
        answer = answer.replace(command, sign)
    try:
        if "," in answer:
            return _steps_reach(answer.split(","), list(numbers), target)
        expression = answer.split("=")[0]
        return sorted(numbers_in(expression)) == sorted(numbers) and evaluate(expression) == target
    except ArithmeticSyntaxError:
        return False


def _steps_reach(steps: Sequence[str], numbers: list[int], target: int) -> bool:
    left = Counter(map(Fraction, numbers))
    for step in steps[:MAX_STEPS]:
        expression, _, stated = step.partition("=")
        used = Counter(map(Fraction, numbers_in(expression)))
        result = evaluate(expression)
        if (
            sum(used.values()) != 2
            or used - left
            or len(numbers_in(stated)) != 1
            or evaluate(stated) != result
        ):
            return False
        left = left - used + Counter([result])
    return len(steps) <= MAX_STEPS and left == Counter([Fraction(target)])


def countdown_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
) -> list[float]:
    """Return 1 where a completion solves Countdown with the columns `numbers` and `target`, else 0."""
    rows = zip(completions, numbers, target, strict=True)
    return [float(solves_countdown(text, given, goal)) for text, given, goal in rows]


def sudoku_cells_right(text: str, puzzle: str, solution: str) -> float:
    """Return the share of empty cells of a 4x4 sudoku that the answer fills as the solution does.

    Args:
        text: A completion; its answer is read as 16 digits, other characters are skipped.
        puzzle: 16 digits, row by row, 0 for an empty cell.
        solution: 16 digits of 1 to 4.
    """
    empty = [cell for cell, digit in enumerate(puzzle) if digit == "0"]
    if len(puzzle) != 16 or len(solution) != 16 or not empty:
        raise InputError(f"a 4x4 sudoku has 16 cells, some of them 0, got {puzzle!r} and {solution!r}")
    digits = re.sub(r"\D", "", extract_answer(text)).ljust(16, "0")
    return sum(digits[cell] == solution[cell] for cell in empty) / len(empty)


def sudoku_reward(
    prompts: Sequence[str], completions: Sequence[str], *, puzzle: Sequence[str], solution: Sequence[str]
) -> list[float]:
    """Return the share of empty cells filled rightly, by the columns `puzzle` and `solution`."""
    rows = zip(completions, puzzle, solution, strict=True)
    return [sudoku_cells_right(text, cells, right) for text, cells, right in rows]


REWARDS: dict[str, tuple[RewardFunction, tuple[str, ...]]] = {
    "math": (math_reward, ("solution",)),
    "countdown": (countdown_reward, ("numbers", "target")),
    "sudoku": (sudoku_reward, ("puzzle", "solution")),
}
"""Bundled rewards by name, each with the data columns it reads."""


def check_columns(name: str, columns: Collection[str]) -> None:
    """Refuse data that lacks a column which a bundled reward reads.

    Args:
        name: The reward.
        columns: Names of the data's columns.

    Raises:
        InputError: When there is no such reward, or a column is missing.
    """
    check_choice("reward", name, tuple(REWARDS))
    missing = [column for column in REWARDS[name][1] if column not in columns]
    if missing:
        raise InputError(f"reward {name} needs the data column {missing[0]!r}; the data has {list(columns)}")


def bundled_reward(name: str) -> RewardFunction:
    """Return a bundled reward that ignores the columns it does not read.

    Raises:
        InputError: When there is none of this name, and, when it is called, where a column is missing.
    """
    check_choice("reward", name, tuple(REWARDS))
    function, needed = REWARDS[name]

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        check_columns(name, columns)
        return function(prompts, completions, **{column: columns[column] for column in needed})

    reward.__name__ = f"{name}_reward"
    return reward


def combine_rewards(values: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the weighted sum of several rewards a completion; NaN ones are left out.

    Args:
        values: One list a reward function.
        weights: One weight a reward function.

    Raises:
        InputError: When all functions give NaN for a completion.
    """
    combined = []
    for index, row in enumerate(zip(*values, strict=True)):
        terms = [w * float(v) for w, v in zip(weights, row, strict=True) if not math.isnan(v)]
        if not terms or not math.isfinite(sum(terms)):
            raise InputError(f"completion {index} has no finite reward: the functions gave {list(row)}")
        combined.append(sum(terms))
    return combined


def score_completions(
    functions: Sequence[RewardFunction],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    groups: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    time_limit: float = 60.0,
) -> list[float]:
    """Return the combined reward of each completion; equal (group, text) pairs are scored once.

    Args:
        functions: Reward functions.
        prompts: One prompt a completion.
        completions: Texts.
        columns: Further data, one value a completion.
        groups: Which data row each completion belongs to; equal texts are shared within a row. None means that
            each completion has a row of its own.
        weights: One weight a function, by default 1 each.
        time_limit: Seconds a function may take for the whole call.

    Raises:
        InputError: When weights or lists of rewards have the wrong length, or a completion has no reward.
        RewardTimeoutError: When a function takes too long.
    """
    check_number("time_limit", time_limit, low=0, low_open=True)
    weights = [1.0] * len(functions) if weights is None else list(weights)
    if not functions or len(weights) != len(functions):
        raise InputError(f"need one weight a reward function, got {len(functions)} and {len(weights)}")
    owners = range(len(completions)) if groups is None else groups
    first: dict[tuple[int, str], int] = {}
    place = [first.setdefault(key, i) for i, key in enumerate(zip(owners, completions, strict=True))]
    kept = sorted(set(place))
    arguments = ([prompts[i] for i in kept], [completions[i] for i in kept])
    chosen = {name: [column[i] for i in kept] for name, column in columns.items()}
    values = [_call(function, arguments, chosen, time_limit) for function in functions]
    score = dict(zip(kept, combine_rewards(values, weights), strict=True))
    return [score[index] for index in place]


def _call(
    function: RewardFunction, arguments: tuple, columns: Mapping[str, Sequence[Any]], time_limit: float
) -> list[float]:
    name, outcome = getattr(function, "__name__", type(function).__name__), {}

    def work() -> None:
        try:
            outcome["values"] = function(*arguments, **columns)
        except BaseException as error:  # raised again in the caller's thread
            outcome["error"] = error

    # A thread cannot be killed; a daemon at least does not keep the process alive.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(time_limit)
    if thread.is_alive():
        raise RewardTimeoutError(f"reward {name} took more than {time_limit:g} s; bound its work")
    if "error" in outcome:
        raise outcome["error"]
    values = outcome["values"]
    if len(values) != len(arguments[1]):
        raise InputError(f"reward {name} returned {len(values)} values for {len(arguments[1])} completions")
    return [float(value) for value in values]
