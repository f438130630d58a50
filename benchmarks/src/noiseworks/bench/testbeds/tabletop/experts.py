"""Scripted experts: approach on a bowed path, carry, release. The side of each bow is drawn at random.

Two demonstrations of one scene may pass on different sides, so their mean is no demonstration: that is the
property of the data that policies which sample are good at.
"""

import numpy as np
from noiseworks.bench.testbeds.tabletop import simulation as sim
from noiseworks.bench.testbeds.tabletop import tasks as names
from noiseworks.core.checks import check_number

BOW, ACTION_NOISE = 0.15, 0.1
LOOK_AHEAD = 0.10
GRASP_DISTANCE, RELEASE_DISTANCE, PUSH_GAP = 0.04, 0.06, 0.14
GATHER_GAP = 0.14
APPROACH, CARRY, RELEASE = 0, 1, 2


class Expert:
    """Experts for the episodes of a `TabletopBatch`, one a row.

    Args:
        env: The environments that will be acted in.
        noise: Standard deviation of the noise added to the velocities.
        bow: Largest distance of a path from the straight line.
        unimodal: Whether every bow goes to the left of its direction.

    Raises:
        InputError: When `noise` or `bow` is negative.
    """

    def __init__(
        self, env: sim.TabletopBatch, *, noise: float = ACTION_NOISE, bow: float = BOW, unimodal: bool = False
    ) -> None:
        check_number("noise", noise, low=0)
        check_number("bow", bow, low=0)
        self.env, self.noise, self.bow, self.unimodal = env, noise, bow, unimodal
        n = env.num_envs
        self.phase, self.sides = np.zeros(n, np.int64), np.ones((n, 2))
        self.start, self.goal = np.zeros((n, 2)), np.zeros((n, 2))
        self.noises = np.zeros((n, env.max_steps, 2))

    def reset(self, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Begin episodes in some rows, after the environment's own reset.

        Args:
            rows: Environments, int [n].
            seeds: A whole number of at least 0 per row, for the sides of the bows and the noise.
        """
        for row, seed in zip(np.atleast_1d(rows).tolist(), np.atleast_1d(seeds).tolist(), strict=True):
            rng = np.random.default_rng([seed, 1])
            self.sides[row] = 1.0 if self.unimodal else rng.choice((-1.0, 1.0), 2)
            self.noises[row] = rng.standard_normal(self.noises.shape[1:])
        self.phase[rows] = APPROACH
        self.start[rows] = self.env.effector[rows]
        self.goal[rows] = self._targets()[0][rows]

    def act(self) -> np.ndarray:
        """Return the experts' actions for the current states, [N, 3] in velocity units, gripper exactly +-1."""
        env, tasks = self.env, self.env.tasks
        first, second = self._targets()
        self._advance(first, second)
        carrying = self.phase == CARRY
        velocity = self._follow(np.where(carrying[:, None], second, first))
        straight = np.isin(tasks, (*names.PUSH_TASKS, names.OPEN_TASK, names.CLOSE_TASK)) & carrying
        velocity[straight] = self._straight(second)[straight]
        velocity[carrying & (tasks == names.PRESS_TASK) | (self.phase == RELEASE)] = 0.0
        step = np.minimum(env.steps, env.max_steps - 1)
        velocity += self.noise * self.noises[env.rows, step]
        return np.concatenate((velocity.clip(-1, 1), np.where(carrying, 1.0, -1.0)[:, None]), axis=1)

    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the gripper has to be to grasp (or press), and then where to carry to, [N, 2] each."""
        env, tasks, rows = self.env, self.env.tasks, self.env.rows
        place, push = tasks < 6, np.isin(tasks, names.PUSH_TASKS)
        disc = np.where(place, np.minimum(tasks // 2, 2), np.where(tasks == names.PUSH_TASKS[1], 1, 0))
        first = env.points[rows, disc].copy()
        offset = env.effector - first  # a disc is carried where it was grasped
        second = env.pads[rows, tasks % 2] + offset
        first[push, 1] -= PUSH_GAP
        second[push] = env.effector[push] + np.array([0.0, 1.0])
        handle = (tasks == names.OPEN_TASK) | (tasks == names.CLOSE_TASK)
        first[handle] = env.points[handle, sim.HANDLE]
        second[handle] = first[handle]
        second[handle, 0] += np.where(tasks[handle] == names.OPEN_TASK, 1.0, -1.0)
        first[tasks == names.PRESS_TASK] = env.buttons[tasks == names.PRESS_TASK]
        gather = tasks == names.GATHER_TASK
        away = env.points[gather, 0] - env.points[gather, 2]
        away /= np.maximum(np.sqrt((away**2).sum(1, keepdims=True)), 1e-9)
        second[gather] = env.points[gather, 2] + GATHER_GAP * away + offset[gather]
        return first, second

    def _advance(self, first: np.ndarray, second: np.ndarray) -> None:
        """Go on to the next phase where a target is reached, and back to the first where a grasp failed."""
        env = self.env
        grasps = ~np.isin(env.tasks, (*names.PUSH_TASKS, names.PRESS_TASK))
        lost = (self.phase == CARRY) & grasps & (env.held < 0) & env.closed
        near = _distance(env.effector, first) < GRASP_DISTANCE
        arrived = (self.phase == APPROACH) & near
        # What is pushed or pressed is never released.
        there = _distance(env.effector, second) < RELEASE_DISTANCE
        done = (self.phase == CARRY) & grasps & there & env.closed
        restart = lost | ((self.phase == RELEASE) & ~near & ~env.closed & ~env.solved())
        for rows, phase, goal in (
            (arrived, CARRY, second),
            (done, RELEASE, second),
            (restart, APPROACH, first),
        ):
            self.phase[rows] = phase
            self.start[rows], self.goal[rows] = env.effector[rows], goal[rows]

    def _follow(self, goal: np.ndarray) -> np.ndarray:
        """Return velocities along a parabola from start to goal, at full speed until close."""
        line = goal - self.start
        length = np.maximum(np.sqrt((line**2).sum(1)), 1e-9)
        along = line / length[:, None]
        across = np.stack((-along[:, 1], along[:, 0]), axis=1)
        done = ((self.env.effector - self.start) * along).sum(1) / length
        share = np.clip(done + LOOK_AHEAD / length, 0, 1)
        side = np.where(self.phase == CARRY, self.sides[:, 1], self.sides[:, 0])
        height = side * self.bow * np.minimum(1, 2 * length) * 4 * share * (1 - share)
        ahead = self.start + share[:, None] * line + height[:, None] * across - self.env.effector
        distance = np.sqrt((ahead**2).sum(1, keepdims=True))
        return ahead / np.maximum(distance, sim.SPEED)

    def _straight(self, goal: np.ndarray) -> np.ndarray:
        return np.clip((goal - self.env.effector) / sim.SPEED, -1, 1)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).sum(-1))
