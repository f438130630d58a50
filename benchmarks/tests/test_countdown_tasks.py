"""Problems of the `countdown` testbed and their verifier, judged by an independent reading of the same texts."""

import ast
import functools
import itertools
import operator
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.bench.testbeds.countdown import TASKS, Problem, make_tokenizer, problems, verify
from noiseworks.bench.testbeds.countdown.expressions import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    ExpressionError,
    evaluate,
    solves,
)
from noiseworks.bench.testbeds.countdown.tasks import BLANKS, LARGEST, LIMIT, TEST_SHARE, is_test
from noiseworks.bench.testbeds.countdown.tokens import UNKNOWN_ID
from noiseworks.core.errors import InputError

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
DIGIT = "\N{ARABIC-INDIC DIGIT THREE}"


def value_by_syntax_tree(text: str) -> tuple[Fraction, Counter]:
    """Return value and numbers of an expression by Python's own parser, without evaluating it."""
    used = Counter()

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used[node.value] += 1
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            return SIGNS[type(node.op)](walk(node.left), walk(node.right))
        raise ValueError(ast.dump(node))

    return walk(ast.parse(text.strip(), mode="eval").body), used


def is_right(text: str, numbers: tuple[int, ...], target: int) -> bool:
    """Judge an answer in either form, written independently of the verifier."""
    try:
        if "=" not in text:
            value, used = value_by_syntax_tree(text)
            return value == target and used == Counter(numbers)
        left = sorted(map(Fraction, numbers))
        for step in text.split(","):
            expression, stated = step.split("=")
            value, used = value_by_syntax_tree(expression)
            if len(list(used.elements())) != 2 or value_by_syntax_tree(stated)[0] != value:
                return False
            for number in used.elements():
                left.remove(Fraction(number))
            left.append(value)
        return left == [target]
    except (ValueError, SyntaxError, ZeroDivisionError):
        return False


# --- problems -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_stored_answer_is_right(task):
    for split in ("train", "test"):
        for problem in problems(task, 60, 3, split):
            assert problem.task == task
            assert verify(problem, problem.answer)


@pytest.mark.parametrize("task", ["countdown", "countdown4"])
def test_countdown_answers_are_right_to_an_independent_reader(task):
    for problem in problems(task, 200, 4):
        assert is_right(problem.answer, problem.numbers, problem.target)
        assert all(1 <= number <= LARGEST for number in problem.numbers)
        assert 1 <= problem.target <= LIMIT


@pytest.mark.parametrize("task", TASKS)
def test_no_question_is_in_both_splits(task):
    asked = {s: {p.prompt for p in problems(task, 150, 0, s)} for s in ("train", "test")}
    assert not asked["train"] & asked["test"]


def test_one_question_in_ten_is_a_test_question():
    numbers = itertools.combinations_with_replacement(range(1, LARGEST + 1), 3)
    every = list(itertools.product(numbers, range(1, LIMIT + 1, 9)))
    tests = sum(is_test(Problem("countdown", "", "", numbers, target)) for numbers, target in every)
    deviation = (len(every) * (TEST_SHARE - 1)) ** 0.5 / TEST_SHARE
    assert abs(tests - len(every) / TEST_SHARE) < 5 * deviation


@pytest.mark.parametrize("task", TASKS)
def test_problems_depend_on_the_seed_and_not_on_their_number(task):
    assert problems(task, 20, 5) == problems(task, 60, 5)[:20]
    assert problems(task, 20, 5) != problems(task, 20, 6)
    assert problems(task, 0, 5) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chess", 1, 0), "task must be one of"),
        (("sort", -1, 0), "n must be"),
        (("sort", 1, -1), "seed must be"),
        (("sort", 1, 0, "heldout"), "split must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        problems(*arguments)


@pytest.mark.parametrize("task", TASKS)
def test_the_tokenizer_knows_every_word_and_gives_the_text_back(task):
    tokenizer = make_tokenizer()
    for problem in problems(task, 50, 7):
        for text in (problem.prompt, problem.answer):
            ids = tokenizer(text)["input_ids"]
            assert UNKNOWN_ID not in ids
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text


# --- verifier of Countdown ----------------------------------------------------------------------------------

NUMBERS, TARGET = (3, 7, 12), 48


@pytest.mark.parametrize(
    "text",
    ["7 - 3 = 4 , 12 * 4 = 48", "12 * (7 - 3)", "(7-3)*12", "((7 - 3)) * (12)", " 7-3=4,4*12=(48) "],
)
def test_right_answers_in_either_form_are_accepted(text):
    assert solves(text, NUMBERS, TARGET)


def test_fractions_along_the_way_are_exact():
    assert solves("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24)
    assert not solves("1 / 3 + 1 / 3", (1, 1, 3, 3), 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "48",
        "12 * 4",  # 4 is not given
        "12 + 12 + 12 + 12",  # 12 is used four times
        "(7 - 3) * 12 + 3 - 3",  # 3 is used three times
        "7 - 3 = 4 , 12 * 4 = 47",  # a step that does not hold
        "7 - 3 = 5 , 12 * 4 = 48",
        "12 * 4 = 48",  # a result that was never reached
        "7 - 3 = 4 , 7 - 3 = 4 , 12 * 4 = 48",  # used up
        "7 - 3 = 4",  # unfinished
        "7 - 3 = 4 , 12 * 4 = 48 ,",
        "7 - 3 = 4 = 4 , 12 * 4 = 48",
        "7 - 3 = 7 - 3 , 12 * 4 = 48",  # a result must be a number
        "12 * 7 - 3 * 12 = 48",
        "(7 - 3 * 12",
        "7 - 3) * 12",
        "(7 - 3) 12",
        "(7 - 3) * 12 =",
        "= 48",
        "12 * (7 - 3) / (3 - 3)",
        "12 ** 7 // 3",
        "12 * (7 - +3)",
        "12 * (7 - 3.0)",
        "12 * (7 - 3) # right",
        "12 * (0x7 - 3)",
        "__import__('os').system('true')",
        "eval('48')",
        "lambda: 48",
        "[48][0]",
        "48\x00",
    ],
)
def test_wrong_answers_and_other_texts_are_refused(text):
    assert not solves(text, NUMBERS, TARGET)


def test_digits_of_other_scripts_are_refused():
    assert solves("3 + 4 + 5", (3, 4, 5), 12)
    assert not solves(f"{DIGIT} + 4 + 5", (3, 4, 5), 12)
    assert not solves(f"{DIGIT} + 4 = 7 , 7 + 5 = 12", (3, 4, 5), 12)
    assert not verify(Problem("modular", "", "3", (3, 0, 0, 7), 3), DIGIT)
    assert not verify(Problem("modular", "", "3", (3, 0, 0, 7), 3), "\N{SUPERSCRIPT THREE}")


def test_long_and_deep_texts_are_refused_at_once():
    for text in (
        "(" * 10**6,
        "1+" * 10**6 + "1",
        "9" * 10**6,
        "1=1," * 10**6,
        "(" * MAX_CHARACTERS,
        "()" * 200,
    ):
        assert not solves(text, NUMBERS, TARGET)
    deep = MAX_DEPTH * "(" + "7" + MAX_DEPTH * ")"
    assert evaluate(deep) == (7, Counter([7]))
    assert evaluate("(7)" + "+(7)" * 50)[0] == 357
    with pytest.raises(ExpressionError, match="nested"):
        evaluate(f"({deep})")
    for task, numbers in (("sort", (3, 1)), ("sudoku", (0,) * 16), ("modular", (1, 0, 1, 5))):
        assert not verify(Problem(task, "", "", numbers), "1 " * 10**6)


expressions = st.recursive(
    st.integers(0, 120).map(str),
    lambda inner: st.builds(
        lambda a, sign, b, form: form.format(a, sign, b),
        inner,
        st.sampled_from("+-*/"),
        inner,
        st.sampled_from(["{}{}{}", "({} {} {})", "{} {}({})"]),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(expressions)
def test_the_parser_agrees_with_the_syntax_tree(text):
    try:
        expected = value_by_syntax_tree(text)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="zero"):
            evaluate(text)
        return
    if len(text) <= MAX_CHARACTERS:
        assert evaluate(text) == expected


def test_the_parser_agrees_with_brute_force():
    """All expressions of three numbers in both ways of bracketing, against nested calls on fractions."""
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    a, b, c = map(Fraction, NUMBERS)
    for (first, f), (second, g) in itertools.product(signs.items(), repeat=2):
        assert evaluate(f"(3 {first} 7) {second} 12")[0] == g(f(a, b), c)
        assert evaluate(f"3 {first} (7 {second} 12)")[0] == f(a, g(b, c))
        binds = second in "*/" and first in "+-"
        assert evaluate(f"3 {first} 7 {second} 12")[0] == (f(a, g(b, c)) if binds else g(f(a, b), c))


@functools.cache
def problems_of(task: str) -> list[Problem]:
    return problems(task, 50, 8)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text("0123456789+-*/()=, ", max_size=60), st.integers(0, 49))
def test_any_text_gets_a_verdict_and_no_wrong_one_is_accepted(text, which):
    for task in TASKS:
        problem = problems_of(task)[which]
        accepted = verify(problem, text)
        if task.startswith("countdown"):
            assert not accepted or is_right(text, problem.numbers, problem.target)
        elif accepted:
            assert list(map(int, text.split())) == list(map(int, problem.answer.split())) or task == "sudoku"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 49), st.data())
def test_changed_answers_are_judged_as_by_an_independent_reader(which, data):
    """Answers with a few words changed are nearly right, so both verdicts occur."""
    problem = problems_of("countdown")[which]
    words = problem.answer.split()
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.sampled_from([*"+-*/=,()", *map(str, range(1, 30)), ""]))
    text = " ".join(words)
    assert verify(problem, text) == is_right(text, problem.numbers, problem.target)


# --- sudoku, sorting, modular arithmetic --------------------------------------------------------------------


def grids() -> list[tuple[int, ...]]:
    """Return all 4x4 sudokus, found by brute force over rows."""
    rows = list(itertools.permutations((1, 2, 3, 4)))
    found = []
    for four in itertools.product(rows, repeat=4):
        columns = all(len(set(column)) == 4 for column in zip(*four, strict=True))
        boxes = all(len({*four[r][c : c + 2], *four[r + 1][c : c + 2]}) == 4 for r in (0, 2) for c in (0, 2))
        if columns and boxes:
            found.append(sum(four, ()))
    return found


def test_exactly_the_288_sudokus_are_right_and_only_where_they_fit():
    every = grids()
    assert len(every) == 288
    blank = Problem("sudoku", "", "", (0,) * 16)
    assert all(verify(blank, " ".join(map(str, grid))) for grid in every)
    rng = np.random.default_rng(0)
    for grid in every[::6]:
        changed = list(grid)
        changed[int(rng.integers(16))] %= 4
        changed[int(rng.integers(16))] += 1
        assert verify(blank, " ".join(map(str, changed))) == (tuple(changed) in every)
    for problem in problems("sudoku", 12, 5):
        assert BLANKS[0] <= problem.numbers.count(0) <= BLANKS[1]
        fits = [
            grid
            for grid in every
            if all(cell in (0, mine) for cell, mine in zip(problem.numbers, grid, strict=True))
        ]
        # A puzzle may have several solutions, and each of them is right.
        assert [grid for grid in every if verify(problem, " ".join(map(str, grid)))] == fits
        assert fits


@pytest.mark.parametrize(
    "text", ["", "1 2 3", "1 2 3 4 " * 3 + "1 2 3", "1 2 3 4 " * 5, "1234" * 4, "1 " * 16]
)
def test_texts_that_are_no_sudoku_are_refused(text):
    assert not verify(Problem("sudoku", "", "", (0,) * 16), text)


def test_sorting_and_remainders_are_judged_exactly():
    sort = Problem("sort", "", "", (5, 3, 3))
    assert verify(sort, "3 3 5")
    for text in ("3 5", "5 3 3", "3 3 5 5", "3, 3, 5", "3 3 5.0", "-3 3 5", "sorted([5, 3, 3])"):
        assert not verify(sort, text)
    for problem in problems("modular", 100, 2):
        a, sign, b, modulus = problem.numbers
        expected = (a + b, a - b, a * b)[sign] % modulus
        assert [r for r in range(modulus) if verify(problem, str(r))] == [expected]
        assert not verify(problem, f"{expected} {expected}")
        assert not verify(problem, f"{problem.prompt} {expected}")
