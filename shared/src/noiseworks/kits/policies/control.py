"""Control with an inference delay: the environment moves on while the policy computes.

The clock is simulated: a replan is timed, and the environment takes as many steps as fit into that time before
the plan arrives. So the loop shows what a delay costs without running in real time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.protocols import BatchEnv
from noiseworks.kits.policies.replanning import ReplanningPolicy


@dataclass(frozen=True)
class ControlTrace:
    """One episode under an inference delay.

    Attributes:
        success: Whether it was solved.
        actions: Executed actions, float64 [S, Da].
        held: Which of them had no plan, bool [S].
        latencies: Seconds of each replan.
        delays: Steps that passed during each replan, int64.
    """

    success: bool
    actions: np.ndarray
    held: np.ndarray
    latencies: np.ndarray
    delays: np.ndarray

    @property
    def latency_p95_s(self) -> float:
        """95 % quantile of the replans' seconds."""
        return float(np.quantile(self.latencies, 0.95))


def control_loop(
    policy: ReplanningPolicy,
    env: BatchEnv,
    *,
    task: int = 0,
    seed: int = 0,
    control_hz: float = 10.0,
    hold: Callable[[np.ndarray], np.ndarray],
    latency_s: float | None = None,
) -> ControlTrace:
    """Run an episode in which the plan for an observation arrives only after its computing time.

    While a plan is computed the rest of the previous one is executed, and `hold` when there is none. A plan that
    took d steps starts at its entry d, as the earlier ones are past. The next replan starts when as many
    actions are left as the last one took steps, so that it arrives in time.

    Args:
        policy: A policy made for one environment.
        env: One environment.
        task: Task of the episode.
        seed: Seed of the episode and of the policy's noise.
        control_hz: Steps of the environment a second.
        hold: Last action [Da] -> the action while there is no plan; the last action is zeros at the start.
        latency_s: Seconds that every replan takes; measured by default.

    Raises:
        InputError: When more than one environment is given or a number is out of range.
    """
    check_number("control_hz", control_hz, low=0, low_open=True)
    if latency_s is not None:
        check_number("latency_s", latency_s, low=0)
    if env.num_envs != 1 or policy.num_envs != 1:
        raise InputError(f"the control loop runs one environment, got {env.num_envs}")
    env.reset(np.zeros(1, np.int64), np.array([task]), np.array([seed]))
    policy.reset([0], [seed])
    queue: list[np.ndarray] = []
    # The plan under way: what will be left of it when it arrives, and the steps until then.
    coming: list[np.ndarray] | None = None
    wait = delay = 0
    last = np.zeros(policy.host.action_dim)
    taken, held, latencies, delays = [], [], [], []
    ended = solved = False
    while not ended:
        policy.remember({n: torch.from_numpy(v) for n, v in env.observe().items()}, [0])
        if coming is not None and wait == 0:
            queue, coming = coming, None
        if coming is None and len(queue) <= delay:
            chunk = policy.replan([0])
            latencies.append(chunk.latency_s if latency_s is None else latency_s)
            wait = delay = int(latencies[-1] * control_hz)
            delays.append(delay)
            coming = list(chunk.actions[0].double().cpu().numpy())[delay:]
            if delay == 0:
                queue, coming = coming, None
        held.append(not queue)
        last = queue.pop(0) if queue else hold(last)
        taken.append(last)
        policy.executed([0])
        result = env.step(last[None])
        ended = bool(result.terminated[0] or result.truncated[0])
        solved = bool(result.terminated[0])
        wait -= 1
    return ControlTrace(solved, np.stack(taken), np.array(held), np.array(latencies), np.array(delays))
