"""Rewards: what they accept, what they refuse, and that no text can make them run code or hang."""

import math
import time
from fractions import Fraction

import pytest
from noiseworks.core.errors import InputError
from noiseworks.mdpo import bundled_reward
from noiseworks.mdpo.arithmetic import ArithmeticSyntaxError, evaluate
from noiseworks.mdpo.rewards import (
    RewardTimeoutError,
    combine_rewards,
    math_equal,
    score_completions,
    solves_countdown,
    sudoku_cells_right,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("(1 + 2) * 3", 9),
        ("7/2", Fraction(7, 2)),
        ("-3 - -4", 1),
        ("2*(3-5)/4", -1),
        (".5*4", 2),
    ],
)
def test_arithmetic_is_exact(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1+",
        "(1",
        "1 2",
        "2**3",
        "1/0",
        "abs(1)",
        "__import__('os')",
        "9" * 16,
        "(" * 60 + "1",
        "1" * 600,
    ],
)
def test_what_is_no_arithmetic_is_refused_quickly(text):
    began = time.perf_counter()
    with pytest.raises(ArithmeticSyntaxError):
        evaluate(text)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("(7 - 3) * 12", True),
        ("\\boxed{12 \\times (7-3) = 48}", True),
        ("<answer>12*7-12*3</answer>", False),
        ("<answer> 12*(7-3) = 48 </answer>", True),
        ("7 - 3 = 4 , 12 * 4 = 48", True),
        ("7 - 3 = 4 , 12 * 4 = 49", False),
        ("7 - 3 = 5 , 12 * 4 = 48", False),
        ("12 * 4 = 48 , 7 - 3 = 4", False),
        ("7 - 3 = 4", False),
        ("48", False),
        ("12*7-36", False),
        ("7 - 3 * 12", False),
        ("", False),
        ("eval('48')", False),
    ],
)
def test_countdown_takes_expressions_and_steps(text, right):
    assert solves_countdown(text, [3, 7, 12], 48) is right


@pytest.mark.parametrize(
    ("answer", "solution", "same"),
    [
        ("so \\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{1,234}", "1234", True),
        ("\\boxed{\\dfrac12}", "\\frac{1}{2}", True),
        ("\\boxed{x = 5}", "5", True),
        ("\\boxed{50\\%}", "50", True),
        ("\\boxed{12 \\text{ cm}}", "12", True),
        ("\\boxed{x^{2}+1}", "x^{2} + 1", True),
        ("\\boxed{\\boxed{3}}", "3", True),
        ("\\boxed{4}", "5", False),
        ("\\boxed{x+1}", "x+2", False),
        ("", "", False),
        ("\\boxed{7} then \\boxed{8}", "8", True),
    ],
)
def test_math_answers_are_compared_by_meaning(answer, solution, same):
    assert math_equal(answer, solution) is same


def test_sudoku_counts_empty_cells():
    puzzle, solution = "0234341221434321", "1234341221434321"
    assert sudoku_cells_right(solution, puzzle, solution) == 1
    assert sudoku_cells_right("2" + solution[1:], puzzle, solution) == 0
    assert sudoku_cells_right("\\boxed{" + " ".join(solution) + "}", puzzle, solution) == 1
    assert sudoku_cells_right("", "0" * 16, solution) == 0
    with pytest.raises(InputError, match="16 cells"):
        sudoku_cells_right("", "123", "123")


def test_bundled_rewards_ignore_other_columns_and_miss_their_own():
    reward = bundled_reward("math")
    assert reward(["p"], ["\\boxed{3}"], solution=["3"], level=[1]) == [1.0]
    with pytest.raises(InputError, match="solution"):
        reward(["p"], ["3"], level=[1])
    with pytest.raises(InputError, match="poetry"):
        bundled_reward("poetry")


def test_rewards_are_weighted_and_nan_is_left_out():
    assert combine_rewards([[1.0, 2.0], [math.nan, 4.0]], [0.5, 0.25]) == [0.5, 2.0]
    with pytest.raises(InputError, match="no finite reward"):
        combine_rewards([[math.nan], [math.nan]], [1.0, 1.0])
    with pytest.raises(InputError, match="no finite reward"):
        combine_rewards([[math.inf]], [1.0])


def test_equal_texts_of_a_row_are_scored_once():
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, columns["k"], strict=True))
        return [float(len(text)) for text in completions]

    texts, owners = ["a", "a", "bb", "a"], [0, 0, 0, 1]
    scores = score_completions([reward], ["p", "p", "p", "q"], texts, {"k": [1, 1, 1, 2]}, groups=owners)
    assert scores == [1.0, 1.0, 2.0, 1.0]
    assert seen == [("p", "a", 1), ("p", "bb", 1), ("q", "a", 2)]


def test_rewards_of_wrong_length_and_slow_ones_are_stopped():
    with pytest.raises(InputError, match="returned 1 values for 2"):
        score_completions([lambda prompts, completions: [1.0]], ["p"] * 2, ["a", "b"], {})
    with pytest.raises(InputError, match="weight"):
        score_completions([bundled_reward("math")], ["p"], ["a"], {}, weights=[1.0, 2.0])

    def slow(prompts, completions):
        time.sleep(1.0)
        return [0.0]

    with pytest.raises(RewardTimeoutError, match=r"slow took more than 0\.05 s"):
        score_completions([slow], ["p"], ["a"], {}, time_limit=0.05)


def test_errors_of_a_reward_reach_the_caller():
    def broken(prompts, completions):
        raise KeyError("level")

    with pytest.raises(KeyError, match="level"):
        score_completions([broken], ["p"], ["a"], {})
