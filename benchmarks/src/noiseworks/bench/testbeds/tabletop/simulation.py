"""The table, its contact rules and its tasks, for N environments at once in numpy, in float64.

The table is [-1, 1]^2 with y up and is seen from above. A gripper `e` moves at most 0.06 along each axis a step
and takes three discs, a drawer handle and a button. Nothing moves by itself.
"""

from typing import Literal

import numpy as np
from noiseworks.bench.testbeds.batches import StepResult, check_actions, check_episodes
from noiseworks.bench.testbeds.tabletop import tasks as names
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

SPEED = 0.06
DISC_RADIUS, DISC_X = 0.08, np.array([-0.45, 0.0, 0.45])
GRASP_RADIUS, PUSH_RADIUS = 0.07, 0.08
PADS, PAD_HALF, PAD_RADIUS = np.array([[-0.6, 0.65], [0.6, 0.65]]), 0.16, 0.12
HANDLE_X, HANDLE_Y, DRAWER_LENGTH = -0.75, -0.85, 0.4
BUTTON, BUTTON_RADIUS, PRESS_STEPS = np.array([0.75, -0.7]), 0.07, 3
PUSHED_Y, OPENED, CLOSED, GATHERED = 0.4, 0.37, 0.03, 0.22
DISTURB_RATE, DISTURB_REACH = 0.02, 0.2
MAX_STEPS, MAX_LATENCY = 100, 4
STATE_DIM, ACTION_DIM = 21, 3
POSE = slice(0, 3)  # of a state: position and gripper
IMAGE_SIZES = (32, 48, 64)
HANDLE = 3  # `held` is -1 for nothing, 0-2 for a disc, 3 for the handle

ActionMode = Literal["velocity", "pose"]


class TabletopBatch:
    """N independent tables that step together; row i depends on its own seed, task and actions alone.

    An action (vx, vy, g) is clipped to [-1, 1]; g > 0 closes the gripper and g <= 0 opens it. In `pose` mode
    it is (x, y, g): the gripper moves towards that point at its greatest speed.

    Args:
        num_envs: Number of environments N.
        action_mode: `velocity` or `pose`.
        disturb: Whether, with probability 0.02 a step, a free disc jumps by up to 0.2.
        latency: Steps, 0 to 4, by which an action acts late; until then the gripper rests, open.
        max_steps: Steps after which an episode is truncated.
        image_size: Side of the pictures that `observe` returns beside the state: 32, 48 or 64; None for none.
        depth: Whether it returns depth maps as well.

    Raises:
        InputError: When an argument is out of range.
    """

    fps = 10

    def __init__(
        self,
        num_envs: int,
        *,
        action_mode: ActionMode = "velocity",
        disturb: bool = False,
        latency: int = 0,
        max_steps: int = MAX_STEPS,
        image_size: int | None = None,
        depth: bool = False,
    ) -> None:
        if image_size not in (None, *IMAGE_SIZES):
            raise InputError(
                f"image_size must be one of {', '.join(map(str, IMAGE_SIZES))}, got {image_size}"
            )
        if depth and image_size is None:
            raise InputError("depth maps have the pictures' size: name an image_size as well")
        self.image_size, self.depth = image_size, depth
        self.goals = names.text_embeddings()[:, 0].astype(np.float32)
        check_number("num_envs", num_envs, low=1, integer=True)
        check_choice("action_mode", action_mode, ("velocity", "pose"))
        check_number("latency", latency, low=0, high=MAX_LATENCY, integer=True)
        check_number("max_steps", max_steps, low=1, integer=True)
        n = self.num_envs = num_envs
        self.action_mode, self.disturb, self.latency, self.max_steps = (
            action_mode,
            disturb,
            latency,
            max_steps,
        )
        self.tasks, self.steps = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.effector, self.closed = np.zeros((n, 2)), np.zeros(n, bool)
        self.held, self.grasped = np.full(n, -1), np.zeros((n, 3), bool)
        # The last of the four points that can be grasped is the handle.
        self.points = np.zeros((n, 4, 2))
        self.points[:, HANDLE] = HANDLE_X, HANDLE_Y
        self.pads, self.buttons = np.zeros((n, 2, 2)), np.zeros((n, 2))
        self.pressed = np.zeros(n, np.int64)
        self.jumps = np.zeros((n, max_steps, 4)) if disturb else None
        self.pending = np.zeros((n, latency, ACTION_DIM))
        self.rows = np.arange(n)

    @property
    def discs(self) -> np.ndarray:
        """Centres of the red, green and blue disc, float64 [N, 3, 2] (a view)."""
        return self.points[:, :HANDLE]

    @property
    def drawer(self) -> np.ndarray:
        """How far the drawers are open, float64 [N] in [0, 0.4]."""
        return self.points[:, HANDLE, 0] - HANDLE_X

    def reset(self, rows: np.ndarray, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Start new episodes in some rows.

        Args:
            rows: Environments to reset, int [n].
            tasks: Task ids 0 to 11, int [n].
            seeds: A whole number of at least 0 for each episode: start state and disturbances depend on it and
                on the task alone.

        Raises:
            InputError: When lengths differ or a task or row is out of range.
        """
        rows, tasks, seeds = check_episodes(rows, tasks, seeds, names.NUM_TASKS)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_envs):
            raise InputError(f"rows must lie in 0 to {self.num_envs - 1}, got {rows.min()} to {rows.max()}")
        for row, task, seed in zip(rows.tolist(), tasks.tolist(), seeds.tolist(), strict=True):
            self._draw(row, task, np.random.default_rng([seed, task]))
        self.tasks[rows] = tasks
        self.steps[rows], self.pressed[rows], self.held[rows] = 0, 0, -1
        self.closed[rows], self.grasped[rows] = False, False
        self.pending[rows] = self._rest(rows)[:, None]

    def _draw(self, row: int, task: int, rng: np.random.Generator) -> None:
        """Draw the start of an episode; every task draws the same numbers in the same order."""
        discs = self.points[row, :HANDLE]
        discs[:, 0] = DISC_X[rng.permutation(3)] + rng.uniform(-0.12, 0.12, 3)
        discs[:, 1] = rng.uniform(-0.35, 0.25, 3)
        self.pads[row] = PADS + rng.uniform(-0.08, 0.08, (2, 2))
        self.buttons[row] = BUTTON + rng.uniform(-0.08, 0.08, 2)
        self.effector[row] = rng.uniform(-0.3, 0.3, 2)
        end = DRAWER_LENGTH * rng.integers(2)
        end = {names.OPEN_TASK: 0.0, names.CLOSE_TASK: DRAWER_LENGTH}.get(task, end)
        self.points[row, HANDLE] = HANDLE_X + end, HANDLE_Y
        if self.jumps is not None:
            self.jumps[row] = rng.random((self.max_steps, 4))

    def _rest(self, rows: np.ndarray) -> np.ndarray:
        rest = np.zeros((len(rows), ACTION_DIM))
        rest[:, 2] = -1.0
        if self.action_mode == "pose":
            rest[:, :2] = self.effector[rows]
        return rest

    def step(self, actions: np.ndarray) -> StepResult:
        """Advance every environment by one step.

        Args:
            actions: [N, 3] in the units of `action_mode`; clipped to [-1, 1].

        Raises:
            InputError: When the shape is wrong or a value is NaN.
        """
        actions = np.clip(check_actions(actions, self.num_envs, ACTION_DIM), -1.0, 1.0)
        if self.latency:
            self.pending = np.concatenate((self.pending, actions[:, None]), axis=1)
            actions, self.pending = self.pending[:, 0], self.pending[:, 1:]
        if self.jumps is not None:
            self._jump()
        self._grip(actions[:, 2] > 0)
        if self.action_mode == "pose":
            motion = np.clip(actions[:, :2] - self.effector, -SPEED, SPEED)
        else:
            motion = SPEED * actions[:, :2]
        self._move(motion)
        self._press()
        self.steps += 1
        solved = self.solved()
        return StepResult(solved.astype(np.float64), solved, ~solved & (self.steps >= self.max_steps))

    def _jump(self) -> None:
        """Now and then move a free disc: a disturbance from outside."""
        event, which, angle, reach = self.jumps[self.rows, np.minimum(self.steps, self.max_steps - 1)].T
        disc = (3 * which).astype(np.int64)
        rows = np.flatnonzero((event < DISTURB_RATE) & (disc != self.held))
        if len(rows):
            length, turn = DISTURB_REACH * reach[rows], 2 * np.pi * angle[rows]
            shift = length[:, None] * np.stack((np.cos(turn), np.sin(turn)), axis=1)
            moved = self.points[rows, disc[rows]] + shift
            self.points[rows, disc[rows]] = np.clip(moved, -1.0, 1.0)

    def _grip(self, closing: np.ndarray) -> None:
        """Rules 1 and 2: closing attaches the nearest point within reach, before moving; opening detaches."""
        rows = np.flatnonzero(closing & ~self.closed)
        if len(rows):
            away = ((self.points[rows] - self.effector[rows, None]) ** 2).sum(-1)
            nearest = away.argmin(1)
            near = away[np.arange(len(rows)), nearest] < GRASP_RADIUS**2
            self.held[rows] = np.where(near, nearest, -1)
            discs = near & (nearest < HANDLE)
            self.grasped[rows[discs], nearest[discs]] = True
        self.held[~closing] = -1
        self.closed = closing.copy()

    def _move(self, motion: np.ndarray) -> None:
        """Rules 3 and 4: move, take along what is held, push what the closed empty gripper runs into."""
        old, held = self.effector, self.held
        new = np.clip(old + motion, -1.0, 1.0)
        rows = np.flatnonzero(held == HANDLE)
        if len(rows):
            new[rows, 0] = np.clip(new[rows, 0], HANDLE_X, HANDLE_X + DRAWER_LENGTH)
            new[rows, 1] = HANDLE_Y
            self.points[rows, HANDLE] = new[rows]
        rows = np.flatnonzero((held >= 0) & (held < HANDLE))
        if len(rows):
            carried = self.points[rows, held[rows]] + (new - old)[rows]
            self.points[rows, held[rows]] = np.clip(carried, -1.0, 1.0)
        rows = np.flatnonzero(self.closed & (held < 0))
        if len(rows):
            delta = (new - old)[rows, None]
            discs = self.points[rows, :HANDLE]
            ahead = ((discs - old[rows, None]) * delta).sum(-1) > 0
            touched = ahead & (((discs - new[rows, None]) ** 2).sum(-1) < PUSH_RADIUS**2)
            # The disc sticks to the gripper, so a push off its centre does not slip away sideways.
            self.points[rows, :HANDLE] = np.clip(discs + touched[..., None] * delta, -1.0, 1.0)
        self.effector = new

    def _press(self) -> None:
        away = ((self.effector - self.buttons) ** 2).sum(-1)
        self.pressed = np.where(self.closed & (away < BUTTON_RADIUS**2), self.pressed + 1, 0)
        np.minimum(self.pressed, PRESS_STEPS, out=self.pressed)

    def solved(self) -> np.ndarray:
        """Return which environments' tasks are solved now, bool [N]."""
        tasks, rows, out = self.tasks, self.rows, np.zeros(self.num_envs, bool)
        place = tasks < 6
        if place.any():
            disc, pad = np.minimum(tasks // 2, 2), tasks % 2
            away = ((self.points[rows, disc] - self.pads[rows, pad]) ** 2).sum(-1)
            out |= place & ~self.closed & (away < PAD_RADIUS**2)
        push = (tasks == names.PUSH_TASKS[0]) | (tasks == names.PUSH_TASKS[1])
        if push.any():
            disc = np.where(tasks == names.PUSH_TASKS[1], 1, 0)
            out |= push & (self.points[rows, disc, 1] > PUSHED_Y) & ~self.grasped[rows, disc]
        out |= (tasks == names.OPEN_TASK) & (self.drawer > OPENED)
        out |= (tasks == names.CLOSE_TASK) & (self.drawer < CLOSED)
        out |= (tasks == names.PRESS_TASK) & (self.pressed >= PRESS_STEPS)
        apart = ((self.points[:, 0] - self.points[:, 2]) ** 2).sum(-1)
        out |= (tasks == names.GATHER_TASK) & ~self.closed & (apart < GATHERED**2)
        return out

    def instruction(self, task: int) -> str:
        """Return a task in words."""
        return names.instruction(task)

    def state(self) -> np.ndarray:
        """Return what can be observed without a camera.

        Returns:
            float64 [N, 21]: gripper position (2), gripper +1 closed or -1 open (1), held one-hot red, green,
            blue, handle (4), discs (6), pads (4), handle x (1), button (2), share of the press done (1).
        """
        out = np.empty((self.num_envs, STATE_DIM))
        out[:, 0:2] = self.effector
        out[:, 2] = np.where(self.closed, 1.0, -1.0)
        out[:, 3:7] = self.held[:, None] == np.arange(4)
        out[:, 7:13] = self.discs.reshape(-1, 6)
        out[:, 13:17] = self.pads.reshape(-1, 4)
        out[:, 17] = self.points[:, HANDLE, 0]
        out[:, 18:20] = self.buttons
        out[:, 20] = self.pressed / PRESS_STEPS
        return out

    def observe(self) -> dict[str, np.ndarray]:
        """Return the policies' observation: `obs` float32 [N, 33], the state and the task's one-hot.

        With cameras also `image` uint8 [N, 3, S, S], `pose` float32 [N, 3], `goal` float32 [N, 32], the embedding of
        the task's instruction, and perhaps `depth` float32 [N, 1, S, S], heights from -1 (the table) to 1.
        """
        states = self.state()
        seen = {"obs": policy_observation(states, self.tasks)}
        if self.image_size is None:
            return seen
        from noiseworks.bench.testbeds.tabletop.rendering import render, render_depth

        seen["image"] = np.ascontiguousarray(render(states, self.image_size).transpose(0, 3, 1, 2))
        seen["pose"] = states[:, POSE].astype(np.float32)
        seen["goal"] = self.goals[self.tasks]
        if self.depth:
            heights = render_depth(states, self.image_size).transpose(0, 3, 1, 2)
            seen["depth"] = (heights / np.float32(127.5) - 1).astype(np.float32)
        return seen


def policy_observation(states: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return states [..., 21] joined with the one-hot of the tasks [...], float32 [..., 33]."""
    goals = np.asarray(tasks)[..., None] == np.arange(names.NUM_TASKS)
    return np.concatenate((states, np.broadcast_to(goals, (*states.shape[:-1], names.NUM_TASKS))), -1).astype(
        np.float32
    )


def hold(last: np.ndarray) -> np.ndarray:
    """Return the velocity action that rests while no plan is there: no motion, the gripper as it was."""
    return np.array([0.0, 0.0, last[2]])
