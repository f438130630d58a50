"""Episodes of a policy on the testbed `tabletop`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed
from noiseworks.kits.policies.options import TABLETOP, Trials
from noiseworks.kits.policies.protocols import Obs
from noiseworks.kits.policies.verbs import run
from noiseworks.mode.cameras import TABLE_CAMERA, table_views
from noiseworks.mode.config import Running
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.vision import ImageEncoder
from torch import Tensor


class SeeingPolicy(EDMPolicy):
    """An image policy at the table: it is shown a rendered table and the embedding of its task."""

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Return the next actions [B, Da] for the table's observations [B, 33]."""
        size = self.model.encoder.size or 32
        return super().act(table_views(testbed(TABLETOP, needs="mode"), obs["obs"], size), ids)


def roll_out(model: MoDEModel, running: Running, trials: Trials, video: Path | None = None) -> dict[str, Any]:
    """Run episodes and return success with its interval, calls, seconds, hit rate and success of each task.

    Args:
        model: The policy's model.
        running: How it samples.
        trials: Which episodes.
        video: Animated WebP file of the first episode of each task.

    Raises:
        InputError: When the model sees through cameras that the testbed has not.
    """
    seeing = isinstance(model.encoder, ImageEncoder)
    if seeing and model.encoder.cameras != (TABLE_CAMERA,):
        raise InputError(f"{TABLETOP} has the camera {TABLE_CAMERA}, the model {model.encoder.cameras}")

    def make(num_envs: int) -> EDMPolicy:
        kind = SeeingPolicy if seeing else EDMPolicy
        policy = kind(model, num_inference_steps=running.steps, grid=running.grid, num_envs=num_envs)
        if running.experts == "cached" and not model.config.dense:
            policy.cache_experts()
        return policy

    outcome = run(make, trials, needs="mode", video=video)
    cache = outcome.policy.cache
    return outcome.summary() | ({} if cache is None else {"cache_hit_rate": cache.report().hit_rate})


@torch.no_grad()
def start_conditions(model: MoDEModel, batch: int, seed: int) -> Condition:
    """Return the conditions of start states of all tasks in turn.

    Args:
        model: A policy that sees states.
        batch: Rows.
        seed: Of the first row.
    """
    tables, rows = testbed(TABLETOP, needs="mode").TabletopBatch(batch), np.arange(batch)
    tables.reset(rows, rows % 12, seed + rows)
    obs = torch.from_numpy(tables.observe()["obs"])[:, None]
    return model.encode({"obs": obs.to(model.denoiser.pos_emb.device)})
