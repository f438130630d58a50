"""Data rows of the tasks that the commands know: from files, or from the testbed."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.mdpo.options import Task

TESTBED = "testbed:countdown"
_BOXED = "Let's think step by step and output the final answer within \\boxed{}."


def _countdown(row: dict[str, Any]) -> dict[str, Any]:
    numbers = [int(n) for n in str(row["input"]).replace(",", " ").split()]
    target = int(row["output"])
    given = ", ".join(map(str, numbers))
    prompt = (
        f"Make {target} from the numbers {given} with + - * / and parentheses. Use every number exactly once. "
        "Output only the expression, within \\boxed{}."
    )
    return {"prompt": prompt, "numbers": numbers, "target": target}


def _math(row: dict[str, Any]) -> dict[str, Any]:
    solution = row["answer"] if "answer" in row else row["solution"]
    return {"prompt": f"{row['problem']}\n{_BOXED}", "solution": str(solution)}


def _sudoku(row: dict[str, Any]) -> dict[str, Any]:
    cells = {name.lower(): str(value).strip() for name, value in row.items()}
    prompt = (
        "Complete the 4x4 sudoku so that every row, column and 2x2 box holds the digits 1 to 4. Cells are given "
        f"row by row, 0 is empty: {cells['puzzle']}\nOutput all 16 digits within \\boxed{{}}."
    )
    return {"prompt": prompt, "puzzle": cells["puzzle"], "solution": cells["solution"]}


_SHAPE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "countdown": _countdown,
    "math": _math,
    "math500": _math,
    "sudoku": _sudoku,
    "rows": dict,
}


def load_rows(
    source: str,
    task: Task,
    *,
    num: int | None = None,
    seed: int = 0,
    split: Literal["train", "test"] = "test",
) -> list[dict[str, Any]]:
    """Return data rows with a prompt and the columns of the task's reward.

    Args:
        source: A file (JSON lines, a JSON list, or CSV), or `testbed:countdown` for the testbed's problems.
        task: `countdown` reads {"input": "a,b,c", "output": "t"}, `math` and `math500` {"problem", "answer"},
            `sudoku` {"puzzle", "solution"}, `rows` takes rows with `prompt` as they are.
        num: Rows taken from the start; by default all (256 of the testbed).
        seed: Of the testbed's problems.
        split: Of the testbed's problems.

    Raises:
        InputError: When the file is missing, of another format, empty or lacks a column.
    """
    check_choice("task", task, get_args(Task))
    if num is not None:
        check_number("num", num, low=1, integer=True)
    if source == TESTBED:
        return _testbed_rows(task, num or 256, seed, split)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no data file at {source}; name a .jsonl, .json or .csv file, or {TESTBED}")
    try:
        records = _read(path)[:num]
        rows = [_SHAPE[task](record) for record in records]
    except (ValueError, TypeError) as error:
        raise InputError(f"{source} cannot be read as data of task {task}: {error}") from error
    except KeyError as error:
        raise InputError(f"{source} lacks the column {error} that task {task} needs") from error
    if not rows or "prompt" not in rows[0]:
        raise InputError(f"{source} has no rows with a prompt; task {task} needs at least one")
    return rows


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _testbed_rows(task: Task, num: int, seed: int, split: str) -> list[dict[str, Any]]:
    if task != "countdown":
        raise InputError(f"{TESTBED} has problems of the task countdown alone, got {task!r}; name a file")
    try:
        from noiseworks.bench.testbeds.countdown import problems
    except ModuleNotFoundError as error:
        raise InputError(f'{TESTBED} needs the extra: pip install "noiseworks-mdpo[bench]"') from error
    return [
        {"prompt": one.prompt, "answer": one.answer, "numbers": list(one.numbers), "target": one.target}
        for one in problems(task, num, seed, split)
    ]
