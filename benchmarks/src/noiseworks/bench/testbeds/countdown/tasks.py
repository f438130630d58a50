"""Problems with verifiable answers, drawn from a seed; training and test problems never meet."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from noiseworks.bench.testbeds.countdown.expressions import solves
from noiseworks.core.checks import check_choice, check_number, check_seed
from noiseworks.core.noise import mix64

Split = Literal["train", "test"]
TASKS = ("countdown", "countdown4", "sudoku", "sort", "modular")
LARGEST = 12  # of the given numbers
LIMIT = 99  # of targets and of results along the way
TEST_SHARE = 10  # one problem in so many is a test problem
SORTED, BLANKS = 5, (6, 10)


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        task: One of `TASKS`.
        prompt: The question, words apart by blanks.
        answer: One right answer; there may be others.
        numbers: What is given: numbers, or cells of a sudoku with 0 for a blank.
        target: What must come out, where the task has one.
    """

    task: str
    prompt: str
    answer: str
    numbers: tuple[int, ...]
    target: int = 0


def problems(task: str, n: int, seed: int, split: Split = "train") -> list[Problem]:
    """Draw problems; the same arguments give the same ones, and problem i does not depend on n.

    Which split a problem is in is a function of what it asks, so no test problem is ever trained on.

    Args:
        task: `countdown` (3 numbers), `countdown4`, `sudoku` (4x4), `sort` or `modular`.
        n: Number of problems.
        seed: Of the draw.
        split: `train` or `test`.

    Raises:
        InputError: On an unknown task or split, or a negative number.
    """
    check_choice("task", task, TASKS)
    check_choice("split", split, ("train", "test"))
    check_number("n", n, low=0, integer=True)
    check_seed("seed", seed)
    rng = np.random.default_rng([seed, TASKS.index(task), int(split == "test")])
    draw, found = _DRAW[task], []
    while len(found) < n:
        problem = draw(rng)
        if problem is not None and is_test(problem) == (split == "test"):
            found.append(problem)
    return found


def is_test(problem: Problem) -> bool:
    """Return whether a problem belongs to the test split."""
    return mix64(TASKS.index(problem.task), problem.target, *problem.numbers) % TEST_SHARE == 0


def verify(problem: Problem, text: str) -> bool:
    """Return whether text is a right answer; it is parsed, never evaluated as code.

    Args:
        problem: The problem.
        text: The answer alone, without the question.
    """
    if problem.task in ("countdown", "countdown4"):
        return solves(text, problem.numbers, problem.target)
    if not re.fullmatch(r"[0-9 ]{1,200}", text):
        return False
    found = [int(word) for word in text.split()]
    if problem.task == "sudoku":
        return _is_sudoku(found, problem.numbers)
    if problem.task == "sort":
        return found == sorted(problem.numbers)
    return found == [problem.target]


# --- Countdown ----------------------------------------------------------------------------------------------


def combine(rng: np.random.Generator, first: int, second: int) -> tuple[str, int] | None:
    """Return a random step of two numbers, as text and its result, or None where it leaves 1 … `LIMIT`.

    The larger number stands first, so that every step has one text.
    """
    first, second = max(first, second), min(first, second)
    sign = "+-*/"[int(rng.integers(4))]
    if sign == "/" and first % second:
        return None
    result = {"+": first + second, "-": first - second, "*": first * second, "/": first // second}[sign]
    if not 1 <= result <= LIMIT:
        return None
    return f"{first} {sign} {second} = {result}", result


def _countdown(rng: np.random.Generator, count: int, task: str) -> Problem | None:
    numbers = [int(number) for number in rng.integers(1, LARGEST + 1, count)]
    left, steps = list(numbers), []
    while len(left) > 1:
        i, j = sorted(rng.choice(len(left), 2, replace=False).tolist())
        step = combine(rng, left[i], left[j])
        if step is None:
            return None
        steps.append(step[0])
        left = [number for k, number in enumerate(left) if k not in (i, j)] + [step[1]]
    given = tuple(sorted(numbers))
    prompt = f"{task} {' '.join(map(str, given))} = {left[0]} :"
    return Problem(task, prompt, " , ".join(steps), given, left[0])


# --- Sudoku, sorting, modular arithmetic --------------------------------------------------------------------


def _sudoku(rng: np.random.Generator) -> Problem:
    base = np.array([[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]])
    rows = [2 * band + row for band in rng.permutation(2) for row in rng.permutation(2)]
    columns = [2 * stack + column for stack in rng.permutation(2) for column in rng.permutation(2)]
    grid = (rng.permutation(4)[base[rows][:, columns]] + 1).reshape(-1)
    blank = rng.permutation(16)[: int(rng.integers(BLANKS[0], BLANKS[1] + 1))]
    given = grid.copy()
    given[blank] = 0
    cells = tuple(int(cell) for cell in given)
    return Problem("sudoku", f"sudoku {' '.join(map(str, cells))} :", " ".join(map(str, grid)), cells)


def _is_sudoku(found: list[int], given: tuple[int, ...]) -> bool:
    if len(found) != 16 or any(cell not in (0, mine) for cell, mine in zip(given, found, strict=True)):
        return False
    grid = np.array(found).reshape(4, 4)
    boxes = grid.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    return all(sorted(line) == [1, 2, 3, 4] for part in (grid, grid.T, boxes) for line in part.tolist())


def _sort(rng: np.random.Generator) -> Problem:
    numbers = tuple(int(number) for number in rng.integers(1, LIMIT + 1, SORTED))
    answer = " ".join(map(str, sorted(numbers)))
    return Problem("sort", f"sort {' '.join(map(str, numbers))} :", answer, numbers)


def _modular(rng: np.random.Generator) -> Problem:
    a, b, modulus = int(rng.integers(LIMIT + 1)), int(rng.integers(LIMIT + 1)), int(rng.integers(2, 12))
    sign = "+-*"[int(rng.integers(3))]
    result = {"+": a + b, "-": a - b, "*": a * b}[sign] % modulus
    numbers = (a, "+-*".index(sign), b, modulus)
    return Problem("modular", f"modular {a} {sign} {b} / {modulus} :", str(result), numbers, result)


_DRAW: dict[str, Callable[[np.random.Generator], Problem | None]] = {
    "countdown": lambda rng: _countdown(rng, 3, "countdown"),
    "countdown4": lambda rng: _countdown(rng, 4, "countdown4"),
    "sudoku": _sudoku,
    "sort": _sort,
    "modular": _modular,
}
