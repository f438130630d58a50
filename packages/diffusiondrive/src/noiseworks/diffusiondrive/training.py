"""Training of planners on recorded scenes."""

import math
from collections.abc import Sequence

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.diffusiondrive.options import Architecture, Fitting
from noiseworks.diffusiondrive.planner import Planner, joint_loss
from noiseworks.diffusiondrive.truncation import Normalizer, fit_anchors
from noiseworks.kits.training import Batches, Run, fit
from torch import Tensor, nn

WARM_UP, LAST_RATE, WEIGHT_DECAY = 0.03, 1e-6, 1e-4


class PlannerModule(L.LightningModule):
    """The losses of planners that share a backbone, AdamW, and a rate that rises and falls along a cosine.

    Args:
        planners: What is trained.
        options: Length and rate.
    """

    def __init__(self, planners: Sequence[Planner], options: Fitting) -> None:
        super().__init__()
        self.planners = nn.ModuleList(planners)
        self.total, self.rate = options.max_steps, options.learning_rate

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch; views are int8 in units of 1/127."""
        view = batch["view"].float() / 127
        losses = joint_loss(self.planners, view, batch["status"], batch["plan"], batch["agents"])
        for name, value in losses.items():
            self.log(name, value, prog_bar=name == "loss")
        return losses["loss"]

    def configure_optimizers(self) -> dict:
        """Return AdamW with the rate of `share_of_rate`."""
        # One fused step: of hundreds of small tensors, a loop over them takes as long as the planners.
        optimizer = torch.optim.AdamW(
            self.planners.parameters(), self.rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_rate(step, self.total, self.rate)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def share_of_rate(step: int, total: int, rate: float) -> float:
    """Return a step's share of the peak rate: linear over the first 3 %, then a cosine to 1e-6."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    low = LAST_RATE / max(rate, LAST_RATE)
    done = (step - warm) / max(1, total - warm)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))


def fit_planner(
    table: dict[str, Tensor],
    architecture: Architecture,
    options: Fitting,
    run: Run | None = None,
    *,
    anchors: Tensor | None = None,
    progress: bool = True,
) -> Planner:
    """Return a planner trained on scenes; the arguments are those of `fit_planners`."""
    return fit_planners(table, [architecture], options, run, anchors=anchors, progress=progress)[0]


def fit_planners(
    table: dict[str, Tensor],
    architectures: Sequence[Architecture],
    options: Fitting,
    run: Run | None = None,
    *,
    anchors: Tensor | None = None,
    progress: bool = True,
) -> list[Planner]:
    """Return planners trained on scenes at once: they have one backbone, which learns from all of them.

    Args:
        table: `view` int8 [B, C, S, S], `status` [B, 8], `plan` [B, 8, 3], `agents` [B, 12, 6].
        architectures: Designs, all different, of one width and number of modes.
        options: Length and bookkeeping.
        run: The open run, None to keep nothing on the way.
        anchors: Of the user's, [N, 8, 2]; by default the means of clusters of the plans.
        progress: Whether to show a bar.

    Raises:
        InputError: When there are fewer scenes than a batch, or fewer different plans than anchors.
        NonFiniteError: When the loss is not finite.
    """
    plans = table["plan"].numpy()
    anchors = fit_anchors(plans, architectures[0].modes, seed=0) if anchors is None else anchors
    channels, size = table["view"].shape[1:3]
    normalizer = Normalizer.fit(np.concatenate((plans[..., :2], anchors.numpy())))
    about = {"scenes": len(plans), "steps": options.max_steps}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        view = (channels, size, size / 2)
        planners = [Planner(one, anchors, normalizer, view, dict(about)) for one in architectures]
        for planner in planners[1:]:
            planner.backbone = planners[0].backbone
        batches = Batches(table, options.batch_size, seed=options.seed)
        fit(PlannerModule(planners, options), batches, run=run, options=options, clip=None, progress=progress)
    return [planner.eval().requires_grad_(False) for planner in planners]
