"""How long a plan takes, alone and in a batch, and what computing the scene's part once saves."""

from typing import Any

import torch
from noiseworks.core.timing import in_turns
from noiseworks.diffusiondrive.options import Denoising, Timing
from noiseworks.diffusiondrive.planner import Planner, TruncatedHead
from torch import Tensor


def time_plans(
    planner: Planner, table: dict[str, Tensor], denoising: Denoising, timing: Timing
) -> dict[str, dict[str, Any]]:
    """Return, for each batch, milliseconds a scene, scenes a second and network calls of plans.

    `seeing` is the backbone's share. Of a truncated planner, `again` is the milliseconds of a plan that computes what
    depends on the scene alone anew in each call, as the released code does; all take turns in one run.

    Args:
        planner: On the CPU.
        table: Scenes, at least as many as the largest batch.
        denoising: Calls and how they move.
        timing: Batches and turns.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(timing.threads or before)
    try:
        return {
            str(size): _of_batch(planner, table, size, denoising, timing.turns) for size in timing.batches
        }
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _of_batch(
    planner: Planner, table: dict[str, Tensor], size: int, denoising: Denoising, turns: int
) -> dict[str, Any]:
    view, status = table["view"][:size].float() / 127, table["status"][:size]
    arms = {
        "plan": lambda turn: planner.plan(view, status, denoising),
        "seeing": lambda turn: planner.backbone(view, status),
    }
    head, scene = planner.head, planner.backbone(view, status)
    if isinstance(head, TruncatedHead):

        def again(turn: int) -> None:
            planner.plan(view, status, denoising)
            for _ in range(denoising.steps - 1):
                head.decoder.hoist(scene)

        arms["again"] = again
    times = in_turns(arms, turns, warmup=2)
    found = {name: round(1e3 * one.median / size, 3) for name, one in times.items()}
    found["scenes_a_second"] = round(size / times["plan"].median, 1)
    return found | {"calls": planner.plan(view, status, denoising).calls}
