"""One table as a Gymnasium environment, which the extra `[tabletop]` installs; for many use `TabletopBatch`."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from noiseworks.bench.testbeds.tabletop.rendering import SIZES, render
from noiseworks.bench.testbeds.tabletop.simulation import (
    ACTION_DIM,
    MAX_STEPS,
    STATE_DIM,
    ActionMode,
    TabletopBatch,
)
from noiseworks.bench.testbeds.tabletop.tasks import NUM_TASKS, instruction
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

ObsMode = Literal["state", "image", "both"]


class TabletopEnv(gymnasium.Env):
    """The table with one task; reward 1 and the end on success, truncation at the limit of steps.

    Observations are a dictionary of `goal`, the task's one-hot float32 [12], and, by `obs_mode`, of `state`
    float32 [21] and `image` uint8 [S, S, 3]. Actions are float32 [3] in [-1, 1].

    Args:
        task: Task id 0 to 11, or None to draw one at each reset; `reset(options={"task": t})` overrides it.
        obs_mode: `state`, `image` or `both`.
        image_size: Side of images: 32, 48 or 64.
        action_mode: `velocity` or `pose`, see `TabletopBatch`.
        disturb: Whether free discs jump now and then.
        latency: Steps, 0 to 4, by which an action acts late.
        max_steps: Limit of steps.
        render_mode: `rgb_array` or None.

    Raises:
        InputError: When an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": TabletopBatch.fps}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        task: int | None = None,
        *,
        obs_mode: ObsMode = "state",
        image_size: int = 64,
        action_mode: ActionMode = "velocity",
        disturb: bool = False,
        latency: int = 0,
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        check_choice("obs_mode", obs_mode, ("state", "image", "both"))
        if task is not None:
            check_number("task", task, low=0, high=NUM_TASKS - 1, integer=True)
        if image_size not in SIZES:
            raise InputError(f"image_size must be one of {', '.join(map(str, SIZES))}, got {image_size}")
        self.batch = TabletopBatch(
            1, action_mode=action_mode, disturb=disturb, latency=latency, max_steps=max_steps
        )
        self.task, self.obs_mode, self.image_size, self.render_mode = task, obs_mode, image_size, render_mode
        parts: dict[str, spaces.Space] = {"goal": spaces.Box(0.0, 1.0, (NUM_TASKS,), np.float32)}
        if obs_mode != "image":
            parts["state"] = spaces.Box(-1.0, 1.0, (STATE_DIM,), np.float32)
        if obs_mode != "state":
            parts["image"] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; the same seed and task give the same start as in a `TabletopBatch`."""
        super().reset(seed=seed)
        task = (options or {}).get("task", self.task)
        task = int(self.np_random.integers(NUM_TASKS)) if task is None else task
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        self.batch.reset(np.zeros(1, np.int64), np.array([task]), np.array([own]))
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        result = self.batch.step(np.asarray(action)[None])
        ends = bool(result.terminated[0]), bool(result.truncated[0])
        return self._observe(), float(result.reward[0]), *ends, self._info()

    def render(self) -> np.ndarray | None:
        """Return the picture of the table, uint8 [S, S, 3], when `render_mode` is `rgb_array`."""
        return None if self.render_mode is None else render(self.batch.state(), self.image_size)[0]

    def _observe(self) -> dict[str, np.ndarray]:
        state = self.batch.state()
        out = {"goal": (np.arange(NUM_TASKS) == self.batch.tasks[0]).astype(np.float32)}
        if self.obs_mode != "image":
            out["state"] = state[0].astype(np.float32)
        if self.obs_mode != "state":
            out["image"] = render(state, self.image_size)[0]
        return out

    def _info(self) -> dict[str, Any]:
        task = int(self.batch.tasks[0])
        return {"task": task, "instruction": instruction(task), "is_success": bool(self.batch.solved()[0])}
