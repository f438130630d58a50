"""Draw what guidance policies make of their network calls, on the testbed `shapes`: oracle score against calls.

    python packages/linear-ag/studies/quality_per_call.py --prompts 96 --seed 212 --out curves

Every policy draws the same scenes from the same noise. Thresholds, coefficients and searched policies come from
other scenes and noise. Writes `curves.svg` and prints a markdown table; seeds below 1000 are for looking, not judging.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from noiseworks.bench.runner.plots import standalone_curve
from noiseworks.bench.testbeds import shapes
from noiseworks.linear_ag.evidence import (
    BATCH,
    CALIBRATION_SEED,
    DECAY,
    GUIDANCE_SCALE,
    STEPS,
    calibrated,
    draw_batch,
    load,
    oracle_scores,
)
from noiseworks.linear_ag.linear import LinearGuidance
from noiseworks.linear_ag.options import Sampling, SearchSettings
from noiseworks.linear_ag.policies import (
    AdaptiveGuidance,
    FixedPolicy,
    GuidancePolicy,
    IntervalGuidance,
    ReuseGuidance,
)
from noiseworks.linear_ag.policy_search import search_policy
from noiseworks.linear_ag.thresholds import threshold_for_nfe

TARGETS = (24.0, 27.0, 30.0, 33.0, 36.0)
REUSED = ((10, 0.0), (5, 0.1), (4, 0.2), (3, 0.25), (2, 0.0), (2, 0.25), (2, 0.5))
INTERVALS = ((0.1, 0.3), (0.1, 0.45), (0.1, 0.6), (0.1, 0.75), (0.1, 0.9))
# Not drawn: it lies on Adaptive Guidance's line, and a plot tells eight lines apart.
SAME_LINE = "the same, difference kept"
FAMILIES = (
    "fewer steps",
    "Adaptive Guidance",
    SAME_LINE,
    "first steps only (StepAG)",
    "interval",
    "LinearAG",
    "difference reused",
    "searched",
    "searched, difference reused",
)


def policies(calibration: int, searched: int) -> Iterator[tuple[str, int, GuidancePolicy]]:
    """Yield (family, denoising steps, policy)."""
    plan = calibrated(None, "cpu", calibration)
    for steps in (10, 12, 14, 15, 17, 20):
        yield "fewer steps", steps, FixedPolicy(actions="2" * steps)
    for target in TARGETS:
        adaptive = AdaptiveGuidance(threshold_for_nfe(plan.gamma["auto"], target, AdaptiveGuidance()))
        yield "Adaptive Guidance", STEPS, adaptive
        yield SAME_LINE, STEPS, replace(adaptive, decay=DECAY)
        yield "first steps only (StepAG)", STEPS, IntervalGuidance(stop=target / STEPS - 1)
    for start, stop in INTERVALS:
        yield "interval", STEPS, IntervalGuidance(start, stop)
    linear = plan.policies["linear_25"]
    for actions in (linear.actions, "23" * (STEPS // 2), "2" * (STEPS // 2) + "23" * (STEPS // 4)):
        yield "LinearAG", STEPS, LinearGuidance(coefficients=linear.coefficients, actions=actions)
    for every, warm in REUSED:
        yield "difference reused", STEPS, ReuseGuidance(every, warm)
    scenes = shapes.sample_scenes(searched, CALIBRATION_SEED + 100, "test")
    sampling = Sampling(STEPS, GUIDANCE_SCALE, batch_size=BATCH, seed=300)
    for budget in (25.0, 30.0):
        for reuse in (False, True):
            settings = SearchSettings("local", budget, max_evaluations=60, reuse=reuse)
            found = search_policy(
                load(None, "cpu"), [shapes.caption(one) for one in scenes], sampling, settings
            )
            yield "searched, difference reused" if reuse else "searched", STEPS, found


def measure(policy: GuidancePolicy, steps: int, scenes: Sequence, seed: int) -> tuple[float, float]:
    """Return a policy's mean calls and mean oracle score."""
    captions, images, calls = [shapes.caption(one) for one in scenes], [], []
    with torch.no_grad():
        for first in range(0, len(captions), BATCH):
            batch = captions[first : first + BATCH]
            _, drawn, used = draw_batch(load(None, "cpu"), policy, batch, seed * 1000 + first, steps)
            images.append(drawn)
            calls += used
    return sum(calls) / len(calls), float(oracle_scores(torch.cat(images), scenes).mean())


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"prompts": 96, "seed": 212, "calibration": 96, "searched": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("curves"))
    chosen = parser.parse_args()
    scenes = shapes.sample_scenes(chosen.prompts, chosen.seed, "test")
    found: dict[str, list[tuple[float, float]]] = {family: [] for family in FAMILIES}
    print("| policy | calls | oracle score |\n|---|---|---|")
    for family, steps, policy in policies(chosen.calibration, chosen.searched):
        calls, score = measure(policy, steps, scenes, chosen.seed)
        found[family].append((calls, score))
        detail = f" `{policy.actions}`" if family.startswith("searched") else ""
        print(f"| {family}{detail} | {calls:.1f} | {100 * score:.1f} % |", flush=True)
    drawn = {
        "arms": [{"name": family, "label": family} for family in FAMILIES if family != SAME_LINE],
        "measurements": {
            family: [
                {"series": {"oracle score against network calls": list(zip(*sorted(points), strict=True))}}
            ]
            for family, points in found.items()
        },
    }
    chosen.out.with_suffix(".svg").write_text(standalone_curve(drawn, "oracle score against network calls"))


if __name__ == "__main__":
    main()
