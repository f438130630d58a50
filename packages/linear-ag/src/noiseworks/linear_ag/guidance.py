"""Guidance decisions per sample and step: actions, similarity, substitutes for skipped predictions.

Tensors in, tensors out. Predictions of one step are stacked as `[R, B, ...]` along the chain of roles from
the most conditioned to the least: (cond, uncond), or (cond, image, uncond) for InstructPix2Pix. Steps k =
0..T-1 are counted in sampling order; k = 0 is the noisiest.
"""

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.levels import to_epsilon, to_x0
from torch import Tensor

SPACES = ("auto", "x_minus_eps", "x0", "eps")


class Action(IntEnum):
    """What is evaluated for one sample at one step. The number is the digit in a policy's text form."""

    UNCOND = 0
    """Only the unconditional prediction, 1 evaluation."""
    COND = 1
    """Only the conditional prediction, 1 evaluation."""
    CFG = 2
    """All predictions: 2 evaluations, 3 for InstructPix2Pix."""
    LINEAR = 3
    """The conditional prediction; the unconditional one is regressed on the past (LinearAG), 1 evaluation."""
    REUSE = 4
    """The conditional prediction plus the last measured difference, 1 evaluation."""
    PAIR = 5
    """InstructPix2Pix: cond and uncond without the image-only prediction, 2 evaluations."""


@dataclass(eq=False)
class GuidanceState:
    """What has happened in a run, per step, sample and pair of neighbouring roles; on the CPU.

    Attributes:
        gamma: Cosine similarity, float64 `[T, B, pairs]`; NaN where it was not measured.
        actions: Decided actions, int64 `[T, B]`; -1 for steps not reached.
        nfe: Network evaluations of each sample so far, int64 `[B]`.
        full_nfe: What they would be with guidance at every call: second-order solvers call twice a step.
    """

    gamma: Tensor
    actions: Tensor
    nfe: Tensor
    full_nfe: int = 0

    @classmethod
    def empty(cls, num_steps: int, batch: int, pairs: int = 1) -> "GuidanceState":
        """Return the state before the first step."""
        return cls(
            gamma=torch.full((num_steps, batch, pairs), float("nan"), dtype=torch.float64),
            actions=torch.full((num_steps, batch), -1, dtype=torch.int64),
            nfe=torch.zeros(batch, dtype=torch.int64),
        )

    def since_guided(self, step: int) -> Tensor:
        """Return how many steps ago each sample was last fully guided, int64 `[B]`; `step` + 1 if never."""
        guided = (self.actions[:step] == Action.CFG).long()
        steps = torch.arange(1, step + 1).unsqueeze(1)
        return step + 1 - (guided * steps).amax(dim=0) if step else torch.ones(self.batch, dtype=torch.int64)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.gamma.shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return self.gamma.shape[1]


def required(actions: Tensor, num_roles: int) -> Tensor:
    """Return which predictions must be evaluated, bool `[R, B]` in chain order.

    Args:
        actions: Int64 `[B]` of `Action`.
        num_roles: R, 2 or 3.
    """
    need = torch.zeros(num_roles, len(actions), dtype=torch.bool)
    need[0] = actions != Action.UNCOND
    need[-1] = (actions == Action.UNCOND) | (actions == Action.CFG) | (actions == Action.PAIR)
    need[1:-1] = actions == Action.CFG
    return need


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return gamma = <a, b> / (|a| |b|) per sample (section 2.1), float32 or wider `[B]`.

    Sums run in at least float32: at 1 - gamma = 1e-3 half precision would round to 1. A zero vector gives 1.

    Args:
        a: `[B, ...]`.
        b: `[B, ...]`.
    """
    a, b = (v.flatten(1).to(torch.promote_types(v.dtype, torch.float32)) for v in (a, b))
    # Sums in a tree; a running sum of many float32 terms would lose what 1 - gamma is made of.
    norms = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    dot = (a * b).sum(dim=1)
    return torch.where(norms == 0, torch.ones_like(dot), dot / norms)


def in_space(prediction: Tensor, sample: Tensor, space: str, level: tuple[float, float, str]) -> Tensor:
    """Return the vectors whose similarity is measured.

    "eps" is the noise prediction, "x_minus_eps" is x_t - epsilon and "x0" the denoised sample. In "eps" the
    similarity starts near 1 because both predictions start as the noise itself, so it needs care as a
    trigger.

    Args:
        prediction: What the network returned, `[B, ...]`.
        sample: x_t, `[B, ...]`.
        space: "x_minus_eps", "x0" or "eps"; "auto" is "x0" for flow models and "x_minus_eps" for others.
        level: (alpha, sigma, prediction type) at this timestep.

    Raises:
        InputError: For "x_minus_eps" on a flow model, where it has no meaning.
    """
    alpha, sigma, prediction_type = level
    flow = prediction_type == "flow_prediction"
    if space == "auto":
        space = "x0" if flow else "x_minus_eps"
    if space == "eps":
        return to_epsilon(prediction, sample, alpha, sigma, prediction_type)
    if space == "x0":
        # For epsilon this is alpha x_0: the factor changes no cosine, and alpha may be tiny at first.
        if prediction_type == "epsilon":
            return sample - sigma * prediction
        return to_x0(prediction, sample, alpha, sigma, prediction_type)
    if flow:
        raise InputError('space "x_minus_eps" has no meaning for a flow model: use "x0" or "auto"')
    return sample - to_epsilon(prediction, sample, alpha, sigma, prediction_type)


def measure(predictions: Tensor, sample: Tensor, space: str, level: tuple[float, float, str]) -> Tensor:
    """Return gamma between neighbours of the chain, `[B, R - 1]`.

    Args:
        predictions: `[R, B, ...]`, all roles filled.
        sample: x_t, `[B, ...]`.
        space: One of `SPACES`.
        level: (alpha, sigma, prediction type).
    """
    vectors = [in_space(p, sample, space, level) for p in predictions]
    return torch.stack([cosine(a, b) for a, b in pairwise(vectors)], dim=1)


def measured(actions: Tensor, num_roles: int) -> Tensor:
    """Return which similarities rest on two evaluated predictions, bool `[B, R - 1]`."""
    full = actions == Action.CFG
    last = full | (actions == Action.PAIR)
    return torch.stack([*[full] * (num_roles - 2), last], dim=1)


def fill(predictions: Tensor, actions: Tensor, estimate: Tensor | None, difference: Tensor | None) -> Tensor:
    """Return all predictions, those not evaluated replaced so that the host's formula gives the result.

    With e_u := e_c the host's e_u + s (e_c - e_u) is e_c for every s (and e_c := e_u gives e_u).

    Args:
        predictions: `[R, B, ...]`; entries that `required` does not ask for are ignored.
        actions: Int64 `[B]`.
        estimate: The regressed unconditional prediction for LINEAR, `[B, ...]`.
        difference: e_c - e_r for each role r at the last CFG step, for REUSE, `[R, B, ...]`.
    """
    full = predictions.clone()
    for action in set(actions.tolist()):
        rows = (actions == action).nonzero().flatten().to(full.device)
        if action == Action.UNCOND:
            full[:-1, rows] = predictions[-1, rows]
        elif action == Action.COND:
            full[1:, rows] = predictions[0, rows]
        elif action == Action.PAIR:
            full[1:-1, rows] = predictions[0, rows]
        elif action == Action.LINEAR and estimate is not None:
            full[1:, rows] = estimate[rows].to(full.dtype)
        elif action == Action.REUSE and difference is not None:
            full[:, rows] = predictions[0, rows] - difference[:, rows]
    return full


def strengthen(predictions: Tensor, strength: float) -> Tensor:
    """Return predictions for which the host's scale s acts as 1 + strength (s - 1).

    e_r := e_c - strength (e_c - e_r).

    Args:
        predictions: `[R, B, ...]`.
        strength: 1 keeps the host's scale, 0 turns guidance off.
    """
    return predictions[0] - strength * (predictions[0] - predictions)
