"""One experiment a statement, each with the rule by which it holds, and with a control that the rule must refuse.

`run("E1", SIZES["quick"], seed=0)` returns a report. With `control=True` the statement's premise is taken away: the
same measurement then has to break the rule.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
from noiseworks.core.closed_form import GaussianMixture
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.diffusion_theory.estimate import (
    fit_network,
    leading_subspace,
    linear_score_error,
    subspace_error,
    subspace_error_expected,
)
from noiseworks.diffusion_theory.guidance import LineMixture, reward_pull, splitting_threshold
from noiseworks.diffusion_theory.laws import (
    Cube,
    Empirical,
    Law,
    Mixture,
    Subspace,
    draw,
    random_basis,
    standard,
)
from noiseworks.diffusion_theory.measures import (
    fit_slope,
    kurtosis,
    nearest_distance,
    off_support_ratio,
    score_error,
    sliced_w1,
    total_variation,
)
from noiseworks.diffusion_theory.options import STATEMENTS, Size
from noiseworks.diffusion_theory.process import decaying_times, uniform_times
from noiseworks.diffusion_theory.reports import NONE, Check, Report, above
from noiseworks.diffusion_theory.reward import expected_gap, ridge
from noiseworks.diffusion_theory.samplers import ORDERS, gaussian_variance, integrate


def _generator(seed: int, *parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix64(seed, *parts) >> 1)


def sampler_order(size: Size, seed: int, control: bool) -> Report:
    """E1: variance recursions of samplers on N(0, v); N below 100 is before the asymptotic regime and left out.

    The start is the process's own law at T, so that the error is the discretisation's alone. Control: a start from
    noise at T = 2, whose error does not fall with N.
    """
    T = 2.0 if control else 8.0
    grid, checks, series, rows = (100, 200, 400, 800), [], {}, []
    for kind, order in ORDERS.items():
        for v in (0.25, 4.0):
            errors = []
            for steps in grid:
                times = uniform_times(T, 0.0, steps)
                found = gaussian_variance(
                    torch.tensor([v]), times, kind, start="noise" if control else "exact"
                )
                errors.append(abs(float(found.sqrt()) - math.sqrt(v)))
            slope = fit_slope(grid, [[error] for error in errors])
            if (
                kind != "ddim"
            ):  # its error has a logarithm where even steps end at 0, and the rule says nothing of it
                name = f"|slope + {order}|, {kind}, v = {v}"
                checks.append(Check(name, abs(slope.value + order), 0.1 * order))
            rows.append({"sampler": kind, "variance": v, "slope": slope.value, "error at 800": errors[-1]})
            series[f"{kind}, v = {v}"] = (grid, errors)
    return Report(
        "E1",
        STATEMENTS["E1"],
        checks,
        rows,
        series,
        ("steps N", "error of the standard deviation"),
        "Gaussian data; the W1 distance is the error of the standard deviation times sqrt(2 / pi).",
    )


def subspace_recovery(size: Size, seed: int, control: bool) -> Report:
    """E2a: eigenvectors of noised data at t = 0.2; n below 10 D is before the asymptotic regime and left out.

    Control: the error against a subspace that has nothing to do with the data.
    """
    t, checks, series, rows = 0.2, [], {}, []
    for D in (16, 32, 64):
        for d in (2, 4, 8):
            grid = [n for n in (200, 800, 3200, 12_800) if n >= 10 * D]
            basis = random_basis(D, d, _generator(seed, D, d))
            compared = random_basis(D, d, _generator(seed, D, d, 1)) if control else basis
            errors, scores = [], []
            for n in grid:
                drawn = [
                    draw(Subspace(basis, standard(d)), n, t, _generator(seed, D, d, n, i))
                    for i in range(size.seeds)
                ]
                errors.append([subspace_error(leading_subspace(x, d), compared) for x in drawn])
                scores.append([linear_score_error(x, compared, t) for x in drawn])
            slope, scored = fit_slope(grid, errors), fit_slope(grid, scores)
            constant = sum(errors[-1]) / size.seeds / subspace_error_expected(grid[-1], d, D, t)
            where = f"d = {d}, D = {D}"
            checks += [
                Check(f"|slope + 1|, {where}", abs(slope.value + 1), 0.15, (slope.high - slope.low) / 2),
                Check(
                    f"|error over formula - 1|, {where}", abs(constant - 1), 0.25, 0.5 / math.sqrt(size.seeds)
                ),
            ]
            rows.append(
                {"d": d, "D": D, "slope": slope.value, "score slope": scored.value, "over formula": constant}
            )
            if d == 4:
                series[where] = (grid, [sum(values) / len(values) for values in errors])
    return Report(
        "E2a",
        STATEMENTS["E2a"],
        checks,
        rows,
        series,
        ("samples n", "subspace error"),
        "A parametric family converges at 1/n; the upper bound of the theory is slower and not observed here.",
    )


def kernel_rate(size: Size, seed: int, control: bool) -> Report:
    """E2b: the empirical score on uniform latents; on a subspace its error is the latent one, exactly.

    Rule: at both times slopes in n rise with d (by no more than 0.2 out of order) and from d = 1 to 8 by at least 0.15.
    Control: all data have eight dimensions.
    """
    grid = tuple(n for n in (250, 1000, 4000, 16_000) if n <= size.largest)
    checks, series, rows = [], {}, []
    for t in (0.1, 0.5):
        slopes = []
        for place, d in enumerate((8, 8, 8, 8) if control else (1, 2, 4, 8)):
            law, errors = Cube(d), []
            for n in grid:
                errors.append([])
                for i in range(4 * size.seeds):
                    points = Empirical(law.sample(n, _generator(seed, place, n, i)))
                    found, _ = score_error(
                        points.score, law, t, size.samples, _generator(seed, place, i, int(1000 * t))
                    )
                    errors[-1].append(found)
            slope = fit_slope(grid, errors)
            slopes.append(slope)
            rows.append({"t": t, "d": d, "slope": slope.value, "low": slope.low, "high": slope.high})
            series[f"d = {d}, t = {t}"] = (grid, [sum(values) / len(values) for values in errors])
        drop = max(max(a.value - b.value, 0.0) for a, b in pairwise(slopes))
        wide = max(slope.high - slope.low for slope in slopes) / 2
        checks.append(Check(f"slopes out of order, t = {t}", drop, 0.2, wide))
        checks.append(
            above(f"slope at d = 8 less slope at d = 1, t = {t}", slopes[-1].value - slopes[0].value, 0.15)
        )
    checks.append(Check("relative effect of D on the error", _ambient_effect(seed), 1e-6))
    return Report(
        "E2b",
        STATEMENTS["E2b"],
        checks,
        rows,
        series,
        ("samples n", "score error"),
        "Only the order of the slopes is judged: the exponent of the upper bound is not what a kernel attains.",
    )


def _ambient_effect(seed: int) -> float:
    """Return by how much the empirical score's error on a plane differs between D = 2 and D = 64, relatively."""
    t, flat = 0.1, Cube(2)
    latents, basis = flat.sample(300, _generator(seed, 1)), random_basis(64, 2, _generator(seed, 2))
    law = Subspace(basis, flat)
    x = draw(law, 100, t, _generator(seed, 3))
    high = (Empirical(latents @ basis.T).score(x, t) - law.score(x, t)).square().sum(1)
    z = x @ basis
    low = (Empirical(latents).score(z, t) - flat.score(z, t)).square().sum(1)
    return float(((high - low).abs() / low).max())


def network_rate(size: Size, seed: int, control: bool) -> Report:
    """E2c: small networks on uniform latents in D = 16, at t = 0.2. Control: d is 4 in both."""
    grid, t, series, rows = (500, 2000, 8000), 0.2, {}, []
    means: dict[int, list[float]] = {}
    for place, d in enumerate((4, 4) if control else (2, 4)):
        law = Subspace(random_basis(16, d, _generator(seed, d)), Cube(d))
        errors = []
        for n in grid:
            data = law.sample(n, _generator(seed, place, n))
            by_width = [
                score_error(
                    fit_network(data, t, d, width, 20 * size.steps, seed),
                    law,
                    t,
                    size.samples,
                    _generator(seed, 9),
                )[0]
                for width in (16, 32, 64)
            ]
            errors.append(min(by_width))
            rows.append({"d": d, "n": n, "errors of widths 16, 32, 64": by_width})
        means[place] = errors
        series[f"d = {d}, set {place + 1}"] = (grid, errors)
    falls = [errors[-1] / errors[0] for errors in means.values()]
    return Report(
        "E2c",
        STATEMENTS["E2c"],
        [
            Check("error at n = 8000 over that at n = 500", max(falls), 1.0),
            Check("error at d = 2 over that at d = 4, n = 8000", means[0][-1] / means[1][-1], 0.9),
        ],
        rows,
        series,
        ("samples n", "score error"),
        "One seed and a fixed budget of steps: an ordering, no exponent.",
    )


def _plane() -> GaussianMixture:
    return GaussianMixture(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
        0.25 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2),
    )


def early_stopping(size: Size, seed: int, control: bool) -> Report:
    """E3: the sampled law of the memorising score is the noised sample, so TV on an axis is an integral, no sampling.

    Off the plane (D = 16) samples of the reverse SDE have the variance of the early stop. Control: the true score.
    """
    grid = tuple(n for n in (100, 400, 1600, 6400) if n <= size.largest)
    stops, mixture, rows, series = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), _plane(), [], {}
    axis = torch.linspace(-5, 5, 1001, dtype=torch.float64)[:, None]
    line = Mixture(
        GaussianMixture(mixture.weights, mixture.means[:, :1], mixture.covariances[:, :1, :1].contiguous())
    )
    true = line.log_prob(axis, 1e-8).exp()
    best = []
    for n in grid:
        found = []
        for t0 in stops:
            values = []
            for i in range(4 * size.seeds):
                points = line.sample(n, _generator(seed, n, i))
                law: Law = line if control else Empirical(points)
                values.append(total_variation(law.log_prob(axis, t0).exp(), true, 0.01))
            found.append(sum(values) / len(values))
        best.append(found.index(min(found)))
        series[f"TV, n = {n}"] = (stops, found)
        rows.append({"n": n, "best t_0": stops[best[-1]], "TV there": min(found)})
    basis, t0 = random_basis(16, 2, _generator(seed, 1)), 0.05
    plane = Subspace(basis, Mixture(mixture))
    train = plane.sample(grid[-1], _generator(seed, 2))
    start = torch.randn(size.samples, 16, dtype=torch.float64, generator=_generator(seed, 3))
    score = plane.score if control else Empirical(train).score
    samples = integrate(
        score, start, decaying_times(8.0, t0, 4 * size.steps), "exponential", _generator(seed, 4)
    )
    off = float((samples - samples @ basis @ basis.T).square().sum() / (14 * size.samples))
    fresh = Mixture(mixture).sample(size.samples, _generator(seed, 5))
    rows.append({"n": grid[-1], "off-plane variance over t_0": off / t0,
                 "sliced W1 on the plane": sliced_w1(samples @ basis, fresh, _generator(seed, 6))})  # fmt: skip
    ends = sum(place in (0, len(stops) - 1) for place in best)
    rises = sum(b > a for a, b in pairwise(best))
    return Report(
        "E3",
        STATEMENTS["E3"],
        [
            Check("sizes n whose best t_0 is at an end", float(ends), NONE),
            Check("sizes n at which the best t_0 grows", float(rises), NONE),
            Check("off-plane variance over t_0", off / t0, 1.5, 3 * math.sqrt(2 / (14 * size.samples))),
        ],
        rows,
        series,
        ("early stop t_0", "total variation"),
        "In W1 the memorising score has no such optimum: the sample itself is close in W1 at t_0 = 0.",
    )


def guidance_strength(size: Size, seed: int, control: bool) -> Report:
    """E4: coupled paths on two components, entropy by the flow's derivative, and the split of a middle component.

    Control: guidance away from the class.
    """
    eta = torch.tensor([0.0, 0.5, 1.0, 3.0, 7.0, 20.0], dtype=torch.float64)
    sign = -1.0 if control else 1.0
    pair = LineMixture(torch.tensor([-1.0, 1.0], dtype=torch.float64), 1)
    times = uniform_times(8.0, 0.0, 800)
    drawn = _generator(seed, 1)
    start = torch.randn(size.paths, dtype=torch.float64, generator=drawn)
    flow, stretch = pair.run(start, times, sign * eta)
    noise = _generator(seed, 2)
    walk, _ = pair.run(
        start, times, sign * eta, lambda: torch.randn(len(start), 1, dtype=torch.float64, generator=noise)
    )
    falls = [int((pair.log_posterior(ends, 0.0).diff(dim=1) < -1e-9).any(1).sum()) for ends in (flow, walk)]
    entropy = (0.5 * math.log(2 * math.pi * math.e) + stretch.mean(0)).tolist()
    triple = LineMixture(torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64), 1)
    delta, strong = 0.02, torch.tensor([0.0, 5.0, 20.0, 60.0, 100.0, 150.0], dtype=torch.float64)
    several = start[:2000]
    split, _ = triple.run(
        several,
        uniform_times(8.0, 0.0, round(8 / delta)),
        sign * strong,
        lambda: torch.randn(len(several), 1, dtype=torch.float64, generator=noise),
    )
    limit = splitting_threshold(2.0, delta)
    peaks = [kurtosis(split[:, place]) for place in range(len(strong))]
    rows = [
        {"strength": float(e), "entropy": h, "mean posterior": float(p)}
        for e, h, p in zip(eta, entropy, pair.log_posterior(flow, 0.0).exp().mean(0), strict=True)
    ] + [
        {"strength": float(e), "kurtosis of the middle": k, "spread": float(s)}
        for e, k, s in zip(strong, peaks, split.std(0), strict=True)
    ]
    beyond = [k for e, k in zip(strong.tolist(), peaks, strict=True) if e > limit]
    return Report(
        "E4",
        STATEMENTS["E4"],
        [
            Check("paths of the flow on which the posterior falls", float(falls[0]), NONE),
            Check("paths of the SDE on which the posterior falls", float(falls[1]), NONE),
            Check(
                "strengths at which the entropy rises",
                float(sum(b > a for a, b in pairwise(entropy))),
                NONE,
            ),
            Check(f"kurtosis beyond the threshold {limit:.1f}", max(beyond), 1.5),
        ],
        rows,
        {"entropy": (eta.tolist(), entropy)},
        ("strength", "entropy of the output"),
        "Monotone for small steps; a discretised flow with a strength beyond its stability is not covered.",
    )


def reward_gap(size: Size, seed: int, control: bool) -> Report:
    """E5: d = 16 latents (ridge sees the subspace alone, whatever D), closed-form conditional law.

    Control: shuffled labels.
    """
    counts, targets, d = (50, 200, 1000), (1.0, 2.0, 4.0, 8.0, 16.0), 16
    eye = torch.eye(d, dtype=torch.float64)
    rows, series, means = [], {}, []
    for n in counts:
        generator = _generator(seed, n)
        true = torch.randn(size.repeats, d, dtype=torch.float64, generator=generator)
        true = true / true.norm(dim=1, keepdim=True)
        x = torch.randn(size.repeats, n, d, dtype=torch.float64, generator=generator)
        noise = torch.randn(size.repeats, n, dtype=torch.float64, generator=generator)
        y = (x @ true[..., None])[..., 0] + 0.5 * noise
        if control:
            y = y[:, torch.randperm(n, generator=generator)]
        theta = ridge(x, y)
        gaps = [expected_gap(eye, theta, true, a, 0.1) for a in targets]
        means.append([float(gap.mean()) for gap in gaps])
        series[f"n = {n}"] = (targets, means[-1])
        spread = float(gaps[0].std() / math.sqrt(size.repeats))
        # Off the support (48 of D = 64 dimensions) samples hold the noise of the early stop alone.
        cost = 5 * 48 * 1e-3
        rows.append({"n": n, "gap at 1": means[-1][0], "its error": spread,
                     "gap at 16": means[-1][-1], "cost of a penalty 5 off the support": cost})  # fmt: skip
    more = sum(b >= a for few, many in pairwise(means)
               for a, b in zip(few, many, strict=True))  # fmt: skip
    lower = sum(b <= a for row in means for a, b in pairwise(row))
    # A target that no label points to is missed by all of it.
    return Report(
        "E5",
        STATEMENTS["E5"],
        [
            Check("pairs of n whose gap does not fall", float(more), NONE),
            Check("pairs of targets whose gap does not grow", float(lower), NONE),
            Check("gap over target at n = 1000", abs(means[-1][0]), 0.1),
        ],
        rows,
        series,
        ("target reward", "target less true reward"),
        "Linear rewards; in expectation the gap is proportional to the target.",
    )


def gradient_guidance(size: Size, seed: int, control: bool) -> Report:
    """E6: reward `10 - (θᵀx - 3)²` with |θ_⊥| = 9 |θ_∥|, D = 64, d = 16, batches of 32 (Guo et al. 2024, section 7).

    Control: naive gradients in the place of look-ahead ones.
    """
    D, d, t0 = 64, 16, 1e-3
    basis = random_basis(D, d, _generator(seed, 1))
    law = Subspace(basis, standard(d))
    theta = torch.randn(D, dtype=torch.float64, generator=_generator(seed, 2))
    inside = basis @ (basis.T @ theta)
    theta = inside / inside.norm() + 9 * (theta - inside) / (theta - inside).norm()
    theta = theta / theta.norm()
    rows, series, ends = [], {}, {}
    for kind, interval in (("naive", 0.9), ("naive" if control else "lookahead", 0.2)):
        generator = _generator(seed, 3, len(kind))
        x = law.sample(32, generator)
        rewards, ratios = [], []
        for _ in range(size.rounds):
            gradient = -2 * ((x @ theta) - 3)[:, None] * theta
            value = interval + (gradient * x).sum(1)
            pulled = reward_pull(law.score, gradient, value, kind)
            x = torch.randn(32, D, dtype=torch.float64, generator=generator)
            x = integrate(pulled, x, decaying_times(8.0, t0, size.steps), "exponential", generator)
            rewards.append(float((10 - (x @ theta - 3) ** 2).mean()))
            ratios.append(float(off_support_ratio(x, basis).mean()))
        name = f"{kind}, interval {interval}"
        ends[name] = sum(ratios[-5:]) / len(ratios[-5:])
        series[f"ratio, {name}"] = (range(1, size.rounds + 1), ratios)
        rows.append({"guidance": name, "ratio at the end": ends[name], "reward first": rewards[0],
                     "reward last": rewards[-1]})  # fmt: skip
    naive, ahead = ends.values()
    return Report(
        "E6",
        STATEMENTS["E6"],
        [
            Check("off-support ratio at the end, look-ahead", ahead, 0.1),
            above("ratio at the end, naive over look-ahead", naive / ahead, 5.0),
        ],
        rows,
        series,
        ("round", "off-support ratio"),
        "The exact score. Naive gradients end where θᵀx = 3, at a ratio of about 0.75 here, not above 1 as in the "
        "paper's figure, whose trained score adds its own error off the support.",
    )


def memorisation(size: Size, seed: int, control: bool) -> Report:
    """E7: distance of samples to the training points, over that of fresh data. Control: the true score."""
    law, stops, rows, series = Mixture(_plane()), (1e-2, 1e-4, 1e-6), [], {}
    ends = []
    for n in (10, 100, 1000):
        train = law.sample(n, _generator(seed, n))
        usual = float(nearest_distance(law.sample(size.samples, _generator(seed, n, 1)), train).mean())
        found = {}
        for name, score in (
            ("memorising", law.score if control else Empirical(train).score),
            ("true", law.score),
        ):
            found[name] = []
            for t0 in stops:
                start = torch.randn(size.samples, 2, dtype=torch.float64, generator=_generator(seed, n, 2))
                times = decaying_times(8.0, t0, 5 * size.steps)
                samples = integrate(score, start, times, "exponential", _generator(seed, n, 3))
                found[name].append(float(nearest_distance(samples, train).mean()) / usual)
        series[f"memorising, n = {n}"] = (stops, found["memorising"])
        ends.append((found["memorising"][-1], abs(found["true"][-1] - 1)))
        rows.append({"n": n, "fresh distance": usual, "memorising at the last t_0": found["memorising"][-1],
                     "true score there": found["true"][-1]})  # fmt: skip
    return Report(
        "E7",
        STATEMENTS["E7"],
        [
            Check("distance over that of fresh data, memorising", max(end for end, _ in ends), 0.2),
            Check(
                "|distance over that of fresh data - 1|, true score",
                max(end for _, end in ends),
                0.25,
                2 / math.sqrt(size.samples),
            ),
        ],
        rows,
        series,
        ("early stop t_0", "distance to the training points"),
        "A network that does not reach the minimum of its loss memorises less.",
    )


EXPERIMENTS: Mapping[str, Callable[[Size, int, bool], Report]] = MappingProxyType(
    {
        "E1": sampler_order,
        "E2a": subspace_recovery,
        "E2b": kernel_rate,
        "E2c": network_rate,
        "E3": early_stopping,
        "E4": guidance_strength,
        "E5": reward_gap,
        "E6": gradient_guidance,
        "E7": memorisation,
    }
)


def run(name: str, size: Size, seed: int = 0, *, control: bool = False) -> Report:
    """Run an experiment.

    Args:
        name: A key of `EXPERIMENTS`.
        size: How large it is; `SIZES` has four.
        seed: Of everything random.
        control: Whether the statement's premise is taken away.

    Raises:
        InputError: On an unknown name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}; use one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name](size, seed, control)
