"""The losses of a training step (section 3.4, and the weights of the authors' code)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSIFICATION, REGRESSION, PLAN = 10.0, 8.0, 12.0
GAMMA, ALPHA = 2.0, 0.25
AGENT_CLASS, AGENT_BOX = 10.0, 1.0


def positive_mode(anchors: Tensor, target: Tensor) -> Tensor:
    """Return the anchor nearest to each plan by mean distance, int64 [B]; the clean anchors, not the predictions.

    Args:
        anchors: [N, T, 2].
        target: [B, T, 2 or more].
    """
    return (anchors[None] - target[:, None, :, :2]).norm(dim=-1).mean(-1).argmin(-1)


def focal_loss(scores: Tensor, mode: Tensor) -> Tensor:
    """Return the sigmoid focal loss, the mean over all scores of the batch.

    Args:
        scores: Logits [B, N].
        mode: The right one, [B].
    """
    target = F.one_hot(mode, scores.shape[1]).to(scores)
    right = torch.where(target > 0, scores.sigmoid(), 1 - scores.sigmoid())
    weight = torch.where(target > 0, ALPHA, 1 - ALPHA) * (1 - right) ** GAMMA
    return (weight * F.binary_cross_entropy_with_logits(scores, target, reduction="none")).mean()


def plan_loss(poses: Tensor, scores: Tensor, anchors: Tensor, target: Tensor) -> Tensor:
    """Return one layer's loss: 10 focal + 8 L1 of the positive mode's poses.

    Args:
        poses: [B, N + M, T, 3]; the last M are of further noisy plans of the positive mode, for the second part.
        scores: [B, N + M].
        anchors: [N, T, 2].
        target: [B, T, 3].
    """
    mode, count = positive_mode(anchors, target), len(anchors)
    chosen = torch.cat((poses[torch.arange(len(poses)), mode][:, None], poses[:, count:]), dim=1)
    away = F.l1_loss(chosen, target[:, None].expand_as(chosen))
    return CLASSIFICATION * focal_loss(scores[:, :count], mode) + REGRESSION * away


def agent_loss(classes: Tensor, boxes: Tensor, target: Tensor) -> Tensor:
    """Return 10 class BCE + 1 box L1 of agents matched by the Hungarian method (cost 10 BCE + 1 L1 of centres).

    Args:
        classes: Logits of there being an agent, [B, A].
        boxes: x, y, heading, length, width, [B, A, 5].
        target: The same and whether there is one, [B, K, 6], K <= A.
    """
    from scipy.optimize import linear_sum_assignment

    there = target[..., 5]
    with torch.no_grad():
        presence = F.binary_cross_entropy_with_logits(
            classes[:, :, None].expand(-1, -1, there.shape[1]),
            there[:, None].expand(-1, classes.shape[1], -1),
            reduction="none",
        )
        distance = (boxes[:, :, None, :2] - target[:, None, :, :2]).abs().sum(-1) * there[:, None]
        cost = (AGENT_CLASS * presence + AGENT_BOX * distance).cpu().numpy()
    pairs = torch.as_tensor(np.stack([linear_sum_assignment(table) for table in cost])).to(classes.device)
    rows, columns = pairs.unbind(1)  # of agents and of targets, [B, K]
    batch = torch.arange(len(pairs), device=classes.device)[:, None]
    real = (there[batch, columns] > 0).to(classes)
    wanted = torch.zeros_like(classes).scatter(1, rows, real)
    apart = (boxes[batch, rows] - target[batch, columns, :5]).abs().sum(-1) * real
    missed = F.binary_cross_entropy_with_logits(classes, wanted)
    return AGENT_CLASS * missed + AGENT_BOX * apart.sum() / there.sum().clamp_min(1)
