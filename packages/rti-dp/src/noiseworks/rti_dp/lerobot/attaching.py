"""Attaching real-time iteration to a LeRobot policy object."""

from noiseworks.kits.policies.hosts.lerobot_control import Controlled, control
from noiseworks.rti_dp.options import Iteration
from noiseworks.rti_dp.policy import RTIPolicy
from torch import nn


def attach(policy: nn.Module, iteration: Iteration = Iteration(), *, seed: int = 0) -> Controlled:
    """Let a LeRobot policy replan by real-time iteration in everything that calls its `select_action`.

    Args:
        policy: LeRobot's `DiffusionPolicy`, or `MultiTaskDiTPolicy` with either objective; one trained by flow
            matching takes `solver="ddim"`, which is Euler's step there.
        iteration: How a replan starts from the last plan.
        seed: Seed of the noise.

    Returns:
        A handle with `detach()`, which is a context manager; `handle.controller.stats` counts network calls.

    Raises:
        InputError: When the settings do not fit the policy, or the method is attached already.
        UnsupportedHostError: When it is no diffusion policy of LeRobot's.
    """
    return control(
        "rti-dp", policy, lambda host, rows: RTIPolicy(host, **vars(iteration), num_envs=rows, seed=seed)
    )
