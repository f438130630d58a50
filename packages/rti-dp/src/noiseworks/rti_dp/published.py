"""The lists of steps of the authors' evaluation files, one for each task, treatment of the gripper and observation."""

from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError

_TAIL = (8, 5, 3, 2, 1, 0)
_LAST10 = tuple(range(9, -1, -1))
_GRASPS = {
    "lift": {
        "clip": ((18, 16, 14, 12, 10, *_TAIL), (22, 20, 18, 16, 14, 12, 10, *_TAIL)),
        "scale": ((3, 1, 0), (3, 1, 0)),
    },
    "can": {
        "clip": (
            (40, 35, 30, 25, 20, 17, 15, 12, 10, *_TAIL),
            (22, 20, 18, 16, 14, 12, 10, *_TAIL),
        ),
        "scale": ((7, 5, 3, 1, 0), (15, 13, 11, 9, 7, 5, 3, 2, 1, 0)),
    },
    "square": {
        "clip": ((25, 20, 17, 15, 12, 10, *_LAST10), (26, 24, 22, 20, 18, 16, 14, 12, 10, *_TAIL)),
        "scale": ((15, 13, 11, 9, 7, 5, 3, 2, 1, 0), tuple(range(20, -1, -1))),
    },
    "tool-hang": {
        "clip": (
            (28, 25, 20, 17, 15, 12, 10, *_LAST10),
            (28, 26, 24, 22, 20, 18, 16, 14, 12, 10, *_TAIL),
        ),
        "scale": ((3, 1, 0), (5, 3, 1, 0)),
    },
    "transport": {
        "clip": (
            (29, 26, 23, 20, 18, 16, 14, 12, 10, *_LAST10),
            (20, 17, 15, 12, 10, *_TAIL),
        ),
        "scale": ((5, 3, 2, 1, 0), (5, 3, 1, 0)),
    },
    "pusht": {"none": ((2, 1, 0), (3, 1, 0))},
    "block-push": {"none": ((3, 1, 0), None)},
}
TASKS, OBSERVATIONS = tuple(_GRASPS), ("lowdim", "image")


def published_steps(task: str, mode: str, observation: str = "lowdim") -> tuple[int, ...]:
    """Return the authors' list of denoising indices for a task.

    They belong to `stepping="reference"`, and the authors' evaluation stepped on `schedule="linear100"`.

    Args:
        task: lift, can, square, tool-hang, transport, pusht or block-push.
        mode: `clip` or `scale`; `none` for the two tasks without a gripper.
        observation: `lowdim` or `image`.

    Raises:
        InputError: When there is no such list.
    """
    check_choice("task", task, TASKS)
    check_choice("mode", mode, tuple(_GRASPS[task]))
    check_choice("observation", observation, OBSERVATIONS)
    found = _GRASPS[task][mode][OBSERVATIONS.index(observation)]
    if found is None:
        raise InputError(f"the authors have no list for {task} with image observations")
    return found
