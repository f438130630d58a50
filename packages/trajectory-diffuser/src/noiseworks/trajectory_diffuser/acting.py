"""Acting with plans in many environments at once: the past, the wished return, and what is left of a plan."""

import warnings

import numpy as np
import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.stepping import VectorStep
from noiseworks.trajectory_diffuser.options import Planning
from noiseworks.trajectory_diffuser.planner import Plan, TrajectoryPlanner

SLACK = 0.2  # by which a target may exceed the returns of the data before a warning


class PlanningPolicy:
    """Plans and plays; `evaluate_returns(env, policy.act, ..., after=policy.after)` runs it.

    Args:
        planner: The planner.
        planning: How plans are made.
        num_envs: Environments N.
        seed: Of all noise.

    Attributes:
        plans: How many plans have been made, over all environments.
        seconds: Of making them.
        last: The plan made last.

    Raises:
        InputError: When more actions are to be played than a plan has, or it has more steps than the schedule.
    """

    def __init__(
        self, planner: TrajectoryPlanner, planning: Planning | None = None, num_envs: int = 1, seed: int = 0
    ) -> None:
        planning = planning or Planning()
        check_number("execute", planning.execute, low=1, high=planner.architecture.horizon - 1, integer=True)
        check_number("steps", planning.steps or 0, low=0, high=planner.architecture.num_steps, integer=True)
        self.planner, self.planning, self.num_envs = planner, planning, num_envs
        low, high = planner.return_range.tolist()
        self.target = high if planning.target is None else planning.target
        if not low - SLACK * (high - low) <= self.target <= high + SLACK * (high - low):
            warnings.warn(
                f"the target {self.target:g} lies outside of the data's returns, {low:g} to {high:g}",
                stacklevel=2,
            )
        self.generator = torch.Generator().manual_seed(seed)
        self.room = planner.draft.room
        self.states = torch.zeros(num_envs, self.room, planner.obs_dim)
        self.wishes = torch.zeros(num_envs, self.room)
        self.actions = torch.zeros(num_envs, planning.execute, planner.action_dim)
        self.plans, self.seconds, self.last = 0, 0.0, None
        self.length, self.wish = np.zeros(num_envs, np.int64), np.zeros(num_envs)
        self.played = np.zeros(num_envs, np.int64)  # actions of the plan at hand
        self.reset(np.ones(num_envs, bool))

    def reset(self, rows: np.ndarray) -> None:
        """Forget the past of some environments, bool [N]."""
        self.length[rows], self.played[rows], self.wish[rows] = 0, self.planning.execute, self.target

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return the next actions [N, Da] for observations [N, Do].

        Raises:
            InputError: When the shape is wrong.
        """
        if obs.shape != (self.num_envs, self.planner.obs_dim):
            raise InputError(
                f"the planner reads observations ({self.num_envs}, {self.planner.obs_dim}), got {obs.shape}"
            )
        self.states = torch.cat((self.states[:, 1:], torch.as_tensor(obs, dtype=torch.float32)[:, None]), 1)
        wish = torch.as_tensor(self.wish, dtype=torch.float32)[:, None]
        self.wishes = torch.cat((self.wishes[:, 1:], wish), 1)
        self.length = np.minimum(self.length + 1, self.room)
        due = self.played >= self.planning.execute
        for length in np.unique(self.length[due]).tolist():  # plans of one batch have a past of one length
            self._plan(np.flatnonzero(due & (self.length == length)), length)
        made = self.actions[torch.arange(self.num_envs), torch.as_tensor(self.played)]
        self.played += 1
        return made.numpy()

    def after(self, step: VectorStep) -> None:
        """Lower the wished returns by the rewards of a step, and forget what ended."""
        self.wish = np.maximum(self.wish - step.rewards, self.planning.floor * self.target)
        self.reset(step.terminated | step.truncated)

    def _plan(self, rows: np.ndarray, length: int) -> None:
        which = torch.as_tensor(rows)
        device = self.planner.mean.device
        past, wishes = self.states[which, -length:].to(device), self.wishes[which, -length:].to(device)
        plan: Plan = self.planner.plan(past, wishes, self.planning, self.generator)
        self.actions[which] = plan.actions[:, : self.planning.execute].cpu()
        self.played[rows] = 0
        self.plans, self.seconds, self.last = self.plans + len(rows), self.seconds + plan.seconds, plan
