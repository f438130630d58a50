"""The twelve tasks of `tabletop`: names, instructions in words, and fixed embeddings of those words."""

import hashlib

import numpy as np
from noiseworks.core.checks import check_number

COLORS = ("red", "green", "blue")
SIDES = ("left", "right")
PLACE_TASKS = tuple(range(6))
PUSH_TASKS = (6, 7)
OPEN_TASK, CLOSE_TASK, PRESS_TASK, GATHER_TASK = 8, 9, 10, 11
NUM_TASKS = 12
TEXT_WIDTH = 32
# Cosine between the embeddings of two wordings of one task.
TEXT_COSINE = 0.9

_PLACE = (
    "place the {color} disc on the {side} pad",
    "put the {color} disc onto the {side} pad",
    "move the {color} disc to the pad on the {side}",
    "bring {color} to the {side} pad and let go",
    "the {color} disc belongs on the {side} pad",
)
_PUSH = (
    "push the {color} disc up",
    "shove the {color} disc to the top without grasping it",
    "slide {color} upwards with the closed gripper",
    "push {color} away from you",
    "move the {color} disc up by pushing",
)
_OTHERS = (
    (
        "open the drawer",
        "pull the drawer open",
        "slide the drawer handle to the right",
        "get the drawer open",
        "the drawer should be open",
    ),
    (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer handle to the left",
        "shut the drawer",
        "the drawer should be closed",
    ),
    (
        "press the button",
        "push the button down",
        "hold the button for a moment",
        "hit the button",
        "use the button",
    ),
    (
        "gather the red and the blue disc",
        "bring red and blue together",
        "put the red disc next to the blue disc",
        "collect red and blue in one place",
        "red and blue should lie together",
    ),
)
# Row t: the instruction of task t and four paraphrases. Tasks 0-5 go through colours, then sides.
INSTRUCTIONS: tuple[tuple[str, ...], ...] = (
    *(tuple(text.format(color=c, side=s) for text in _PLACE) for c in COLORS for s in SIDES),
    *(tuple(text.format(color=c) for text in _PUSH) for c in COLORS[:2]),
    *_OTHERS,
)


def instruction(task: int, paraphrase: int = 0) -> str:
    """Return the words of a task.

    Args:
        task: Task id, 0 to 11.
        paraphrase: 0 for the instruction itself, 1 to 4 for its paraphrases.

    Raises:
        InputError: When either is out of range.
    """
    check_number("task", task, low=0, high=NUM_TASKS - 1, integer=True)
    check_number("paraphrase", paraphrase, low=0, high=len(INSTRUCTIONS[0]) - 1, integer=True)
    return INSTRUCTIONS[task][paraphrase]


def text_embeddings() -> np.ndarray:
    """Return one unit vector per task and wording, which stands in for a text encoder's output.

    Two wordings of a task have cosine 0.9; the parts that differ and the tasks' directions are seeded by a
    hash of the words.

    Returns:
        float64 [12, 5, 32].
    """
    table = np.empty((NUM_TASKS, len(INSTRUCTIONS[0]), TEXT_WIDTH))
    for task, texts in enumerate(INSTRUCTIONS):
        raw = np.stack([_hashed_direction(" | ".join(texts)), *map(_hashed_direction, texts)])
        axes = np.linalg.qr(raw.T)[0].T
        axes *= np.sign((axes * raw).sum(1, keepdims=True))
        table[task] = np.sqrt(TEXT_COSINE) * axes[0] + np.sqrt(1 - TEXT_COSINE) * axes[1:]
    return table


def _hashed_direction(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(TEXT_WIDTH)
