"""Time LinearAG's fit from one Gram matrix against least squares on stacked regressors.

    python packages/linear-ag/studies/gram_fit.py --runs 64 --size 4096 --steps 20

Both forms see the same runs of nearly collinear predictions, one run after the other, and take turns in one
process. The ratio of the medians, the bytes that each holds at its peak and the largest difference of the
coefficients' predictions are printed as JSON.
"""

import argparse
import json
import statistics
import time

import torch
from noiseworks.linear_ag.linear import fit_from_gram, gram_matrix
from torch import Tensor


def make_run(seed: int, steps: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the two predictions of a run, each [steps, 1, size]: slow drifts of one field, and their noise."""
    generator = torch.Generator().manual_seed(seed)
    field, drift = torch.randn(2, size, generator=generator)
    times = torch.linspace(0, 1, steps)[:, None]
    cond = field + times * drift + 0.05 * torch.randn(steps, size, generator=generator)
    uncond = 0.9 * cond + 0.05 * torch.randn(steps, size, generator=generator)
    return cond[:, None], uncond[:, None]


def from_gram(runs: list[tuple[Tensor, Tensor]], steps: int) -> tuple[list[Tensor], int]:
    """Return every step's coefficients from the summed Gram matrix, and the bytes held."""
    total, held = torch.zeros(()), 0
    for cond, uncond in runs:
        gram = gram_matrix(cond, uncond)
        total = total + gram
        # One run, its two predictions in float64, and two matrices.
        held = max(held, 3 * (cond.nbytes + uncond.nbytes) + 2 * gram.nbytes)
    fit = fit_from_gram(total, steps)
    pairs = zip(fit.beta_cond, fit.beta_uncond, strict=True)
    return [torch.cat([cond[: k + 1], uncond[:k]]) for k, (cond, uncond) in enumerate(pairs)], held


def from_stacks(runs: list[tuple[Tensor, Tensor]], steps: int) -> tuple[list[Tensor], int]:
    """Return every step's coefficients from `lstsq` on the regressors of all runs, and the bytes held."""
    cond = torch.cat([run[0] for run in runs], dim=1).flatten(1).double()
    uncond = torch.cat([run[1] for run in runs], dim=1).flatten(1).double()
    solutions, held = [], 0
    for k in range(steps):
        regressors = torch.cat([cond[: k + 1], uncond[:k]]).T
        solutions.append(torch.linalg.lstsq(regressors, uncond[k][:, None]).solution[:, 0])
        held = max(held, cond.nbytes + uncond.nbytes + regressors.nbytes)
    return solutions, held


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"runs": 64, "size": 4096, "steps": 20, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    runs = [make_run(seed, chosen.steps, chosen.size) for seed in range(chosen.runs)]
    forms = {"gram": from_gram, "stacked": from_stacks}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    found: dict[str, tuple[list[Tensor], int]] = {}
    for _ in range(chosen.turns):
        for name, form in forms.items():
            begin = time.perf_counter()
            found[name] = form(runs, chosen.steps)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cond, uncond = (part[:, 0].double() for part in make_run(chosen.runs, chosen.steps, chosen.size))
    difference = max(
        float(((a - b) @ torch.cat([cond[: k + 1], uncond[:k]])).abs().max())
        for k, (a, b) in enumerate(zip(found["gram"][0], found["stacked"][0], strict=True))
    )
    report = {
        "seconds": medians,
        "times faster": medians["stacked"] / medians["gram"],
        "times less memory": found["stacked"][1] / found["gram"][1],
        "largest difference of a prediction": difference,
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
