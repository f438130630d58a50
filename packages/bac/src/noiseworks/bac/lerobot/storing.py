"""A directory of LeRobot's multi-task policy together with a plan."""

from pathlib import Path

from noiseworks.bac.plan import CachePlan
from noiseworks.kits.policies.hosts.lerobot_control import write_policy


def write_lerobot(model: str | Path, plan: str | Path, out: str | Path) -> None:
    """Write a policy directory that LeRobot's own commands run with a plan.

    Args:
        model: The directory that LeRobot saved with a policy of type multi_task_dit.
        plan: The plan's directory.
        out: The directory to make.

    Raises:
        ArtifactError: When there is no plan.
        InputError: When the model is no directory of that policy.
    """
    CachePlan.from_pretrained(plan)
    write_policy(model, out, "bac", {}, base="multi_task_dit", plan=plan)
