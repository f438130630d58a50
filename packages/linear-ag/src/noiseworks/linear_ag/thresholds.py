"""What a threshold of Adaptive Guidance costs on recorded similarities, and which one meets a budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from noiseworks.core.checks import check_number
from noiseworks.linear_ag.guidance import GuidanceState, required
from noiseworks.linear_ag.policies import AdaptiveGuidance
from torch import Tensor


def nfe_of_traces(gamma: Tensor, policy: AdaptiveGuidance) -> Tensor:
    """Return what Adaptive Guidance would cost on recorded runs, evaluations int64 `[n]`.

    Exact, not an estimate: until a sample converges its run is the fully guided one.

    Args:
        gamma: Similarities of fully guided runs, `[T, n]` or `[T, n, pairs]`.
        policy: A sticky policy; `per_sample=False` takes the n runs as one batch.
    """
    gamma = gamma if gamma.ndim == 3 else gamma[..., None]
    steps, batch, pairs = gamma.shape
    state = GuidanceState.empty(steps, batch, pairs)
    state.gamma[:] = gamma
    return sum(required(policy.decide(step, state), pairs + 1).sum(dim=0) for step in range(steps))


def threshold_for_nfe(gamma: Tensor, target_nfe: float, policy: AdaptiveGuidance) -> float:
    """Return the threshold at which AG costs `target_nfe` on average, as closely as the runs allow.

    Args:
        gamma: Similarities of fully guided runs, `[T, n]` or `[T, n, pairs]`.
        target_nfe: Mean evaluations a sample, between one guided step and T of them, each of pairs + 1
            evaluations.
        policy: Everything but the threshold.

    Raises:
        InputError: When the target is out of reach.
    """
    steps, pairs = gamma.shape[0], gamma.shape[2] if gamma.ndim == 3 else 1
    guided = pairs + 1
    check_number("target_nfe", target_nfe, low=steps + guided - 1, high=guided * steps)
    candidates = candidate_thresholds(gamma)
    low, high = 0, len(candidates) - 1
    cost = _cost_at(gamma, policy, candidates)
    while low < high:
        middle = (low + high) // 2
        if cost(middle) < target_nfe:
            low = middle + 1
        else:
            high = middle
    best = min(
        (i for i in (low - 1, low) if 0 <= i < len(candidates)), key=lambda i: abs(cost(i) - target_nfe)
    )
    return candidates[best]


def candidate_thresholds(gamma: Tensor) -> list[float]:
    """Return all thresholds that differ in effect on recorded runs, ascending; the last one means never."""
    values = gamma[gamma.isfinite()].double().unique()
    between = (values[1:] + values[:-1]) / 2
    return [max(-1.0, float(values[0]) - 1e-6), *between.tolist(), 1.0 + 1e-6]


def _cost_at(gamma: Tensor, policy: AdaptiveGuidance, candidates: Sequence[float]) -> Callable[[int], float]:
    return lambda i: float(nfe_of_traces(gamma, replace(policy, threshold=candidates[i])).double().mean())
