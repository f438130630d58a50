"""What the theorems say about a user's own data: dimension, learning curve, memorisation, steps, early stop.

Everything is in units in which the data have mean square 1 a coordinate, as diffusion models are trained.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.diffusion_theory.estimate import fit_ridge, two_nearest_dimension
from noiseworks.diffusion_theory.laws import Empirical
from noiseworks.diffusion_theory.measures import fit_slope, nearest_distance
from noiseworks.diffusion_theory.options import Diagnosis
from noiseworks.diffusion_theory.process import decaying_times, initial_divergence, level, noised
from noiseworks.diffusion_theory.samplers import (
    KINDS,
    gaussian_divergence,
    gaussian_variance,
    marginal_variance,
)
from torch import Tensor

FEWEST = 64
HELD_OUT = 500  # points at most
TIMES = (0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = (10, 20, 50, 100, 200, 500, 1000)
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]


def diagnose(data: Tensor, options: Diagnosis | None = None) -> tuple[dict[str, Any], Curves]:
    """Return what the theory says about data, and the curves behind it.

    Args:
        data: (n, D) or any (n, ...) that is flattened.
        options: What is asked.

    Returns:
        Findings as plain values, and figure -> curve -> (x, y).

    Raises:
        InputError: On fewer than 64 points, numbers that are not finite, constant data or duplicates only.
    """
    options = Diagnosis() if options is None else options
    x = _standardised(data)
    values = torch.linalg.eigvalsh(torch.cov(x.T).reshape(x.shape[1], -1)).flip(0).clamp(min=0)
    dimension, findings, curves = _dimension(x, values)
    steps, curves["steps"] = _discretisation(values, options)
    findings |= steps | _rates(dimension, x.shape[1], len(x))
    learned, learning = _learning(x, options)
    memory, curves["memorisation"] = _memorisation(x, options)
    return findings | learned | memory, curves | learning


def _standardised(data: Tensor) -> Tensor:
    x = data.reshape(len(data), -1).double() if data.ndim >= 1 else data
    if x.ndim != 2 or len(x) < FEWEST or not x.shape[1]:
        raise InputError(
            f"the data must hold at least {FEWEST} points (n, ...), got shape {tuple(data.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise InputError("the data hold NaN or infinity; remove those points")
    x = x - x.mean(0)
    scale = float(x.square().mean().sqrt())
    if scale == 0:
        raise InputError("all points of the data are equal; there is nothing to diagnose")
    return x / scale


def _dimension(x: Tensor, values: Tensor) -> tuple[float, dict[str, Any], Curves]:
    """Section 3.2: two nearest neighbours, and principal components."""
    share = values.cumsum(0) / values.sum()
    found = two_nearest_dimension(x[:4000])
    principal = {int(100 * level): int((share < level - 1e-12).sum()) + 1 for level in (0.9, 0.99)}
    findings = {
        "points": len(x),
        "ambient dimension": x.shape[1],
        "intrinsic dimension": found,
        "components for 90 % of the variance": principal[90],
        "components for 99 % of the variance": principal[99],
    }
    return (
        found,
        findings,
        {"variance": {"share of the variance": (list(range(1, len(share) + 1)), share.tolist())}},
    )


def _rates(d: float, D: int, n: int) -> dict[str, Any]:
    """Section 3.2: exponents of the upper bounds, with the data's own dimension and with the ambient one."""
    return {
        "score error bound, exponent of n": {"intrinsic": -2 / (d + 5), "ambient": -2 / (D + 5)},
        "distribution error bound, exponent of n": {
            "intrinsic": -1 / (2 * (d + 5)),
            "ambient": -1 / (2 * (D + 5)),
        },
        "early stop that the bound asks for": n ** (-1 / (d + 5)),
    }


def _discretisation(values: Tensor, options: Diagnosis) -> tuple[dict[str, Any], dict]:
    """Section 4, on a Gaussian with the data's covariance, exactly: what start and steps cost in KL."""
    goal = marginal_variance(values, options.t0)
    curves, needed = {}, {}
    for kind in KINDS:
        costs = []
        for steps in STEPS:
            times = decaying_times(options.horizon, options.t0, steps)
            found = gaussian_variance(values, times, kind, start="exact")
            costs.append(gaussian_divergence(found.clamp(min=1e-300), goal))
        curves[kind] = (list(STEPS), costs)
        enough = (steps for steps, cost in zip(STEPS, costs, strict=True) if cost <= options.tolerance)
        needed[kind] = next(enough, None)
    start = initial_divergence(values, 0.0, options.horizon)
    horizon = next(
        (T / 2 for T in range(1, 81) if initial_divergence(values, 0.0, T / 2) <= options.tolerance), None
    )
    return {
        "divergence of the start": start,
        "horizon that is long enough": horizon,
        "steps that are enough": {kind: steps or f"more than {STEPS[-1]}" for kind, steps in needed.items()},
    }, curves


def _learning(x: Tensor, options: Diagnosis) -> tuple[dict[str, Any], Curves]:
    """Sections 3.1 and 3.2: the held-out loss of two estimators on subsets, and where the best one is heading.

    The loss is `h |ŝ + ε/√h|²` a coordinate; its part that no score removes is the same for all, so that only
    differences count. The fit is `loss(n) = floor + c n^-γ` with the floor taken from three sizes.
    """
    order = torch.randperm(len(x), generator=_drawn(options.seed, 0))
    held, rest = x[order[: min(HELD_OUT, len(x) // 4)]], x[order[min(HELD_OUT, len(x) // 4) :]]
    rest = rest[: options.largest]
    sizes = sorted({max(16, len(rest) >> power) for power in range(5)})
    found: dict[str, Any] = {}
    curves: Curves = {"learning, t = 0.1": {}, "best loss by time": {}}
    best: Mapping[str, list[float]] = {"memorising": [], "ridge": []}
    for t in TIMES:
        noise = _drawn(options.seed, 1)
        seen = noised(held, t, noise)
        alpha, sigma = level(t)
        epsilon = (seen - alpha * held) / sigma
        losses: dict[str, list[float]] = {"memorising": [], "ridge": []}
        for n in sizes:
            scores = {
                "memorising": Empirical(rest[:n]).score(seen, t),
                "ridge": fit_ridge(rest[:n], t, _drawn(options.seed, 2))(seen, t),
            }
            for name, score in scores.items():
                losses[name].append(float((sigma * score + epsilon).square().mean()))
        for name, values in losses.items():
            best[name].append(min(values))
        if t == 0.1:
            curves["learning, t = 0.1"] = {name: (sizes, values) for name, values in losses.items()}
            found["held-out loss at t = 0.1"] = {name: values[-1] for name, values in losses.items()}
            found |= _gain(sizes, losses["ridge"])
    curves["best loss by time"] = {name: (list(TIMES), values) for name, values in best.items()}
    lead = [t for t, a, b in zip(TIMES, best["ridge"], best["memorising"], strict=True) if a < b]
    found["times at which smoothing beats memorising"] = lead
    return found, curves


def _gain(sizes: list[int], losses: list[float]) -> dict[str, Any]:
    """Return what doubling the data would gain, by the last two halvings of the learning curve."""
    before, last = losses[-3] - losses[-2], losses[-2] - losses[-1]
    if len(sizes) < 3 or last <= 0 or before <= last:
        return {"gain of twice the data": "not resolved: the learning curve is not falling ever more slowly"}
    slope = fit_slope((sizes[-2], sizes[-1]), [[before], [last]])
    return {"gain of twice the data": last**2 / before, "exponent of n, measured": slope.value}


def _memorisation(x: Tensor, options: Diagnosis) -> tuple[dict[str, Any], dict]:
    """Section 3.1: at which noise the exact minimiser of the training loss points at a single training point."""
    half = x[torch.randperm(len(x), generator=_drawn(options.seed, 3))][: options.largest + HELD_OUT]
    held, train = half[: min(HELD_OUT, len(half) // 4)], half[min(HELD_OUT, len(half) // 4) :]
    law = Empirical(train)
    times = torch.logspace(math.log10(max(options.t0, 1e-4)), 0.5, 12, dtype=torch.float64).tolist()
    atoms, single = [], []
    for t in times:
        shared = law.effective_atoms(noised(held, t, _drawn(options.seed, 4)), t)
        atoms.append(float(shared.median()))
        single.append(float((shared < 2).double().mean()))
    collapsed = [t for t, share in zip(times, single, strict=True) if share > 0.5]
    return {
        "nearest training point of a held-out point": float(nearest_distance(held, train).mean()),
        "memorising below time": max(collapsed) if collapsed else None,
    }, {"points that share a denoised one (median)": (times, atoms)}


def _drawn(seed: int, part: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix64(seed, part) >> 1)
