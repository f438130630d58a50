"""What `noiseworks-diffusion-theory` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread
from noiseworks.core.output import check_file, write_json
from noiseworks.diffusion_theory.options import SIZES, Diagnosis, Proposal, Study


def evaluate(*, study: Spread[Study] = Study(), out: Path | None = None) -> dict[str, Any]:
    """Run experiments on the survey's statements, and say which hold.

    Args:
        study: Which experiments, how large.
        out: Folder for a report and a figure of each; experiments that it holds already, of the same size and seed, are
            not run again.

    Returns:
        Experiment -> verdict, what decided it, and seconds.
    """
    names = study.names()
    if out is not None:
        check_writable(out)
        if out.is_file():
            raise InputError(f"the output folder {out} is a file; name a folder")
    import json
    import time

    from noiseworks.diffusion_theory.experiments import run
    from noiseworks.kits.pictures import line_plot

    found = {}
    for name in names:
        path = None if out is None else out / f"{name}.json"
        settings = {"size": study.size, "seed": study.seed}
        if path is not None and path.is_file():
            known = json.loads(path.read_text())
            if known.get("settings") == settings:
                found[name] = known["summary"]
                continue
        begun = time.perf_counter()
        report = run(name, SIZES[study.size], study.seed)
        widest = max(report.checks, key=lambda check: check.excess)
        summary = {
            "statement": report.statement,
            "verdict": report.verdict,
            "nearest to its limit": f"{widest.name}: {widest.value:.3g} of {widest.allowed:g}",
            "seconds": time.perf_counter() - begun,
        }
        found[name] = summary
        if path is not None:
            out.mkdir(parents=True, exist_ok=True)
            line_plot(out / f"{name}.svg", report.series, report.axes, log=_scales(name))
            write_json(path, {"settings": settings, "summary": summary, **report.to_dict()})
    return {"experiments": found}


def _scales(name: str) -> tuple[bool, bool]:
    """Return which axes of an experiment's figure are logarithmic."""
    return {"E3": (True, False), "E4": (False, False), "E6": (False, True)}.get(name, (True, True))


def diagnose(
    *, data: Path, diagnosis: Spread[Diagnosis] = Diagnosis(), out: Path | None = None
) -> dict[str, Any]:
    """Say what the theorems say about your own data.

    Args:
        data: An .npy file with at least 64 points (n, ...).
        diagnosis: What is asked.
        out: Folder for the findings and their figures.

    Returns:
        Intrinsic dimension, exponents of the bounds, steps and horizon that are enough, the learning curve's end, and
        the time below which the minimiser of the training loss memorises; in units of one standard deviation.
    """
    if out is not None:
        check_writable(out)
        if out.is_file():
            raise InputError(f"the output folder {out} is a file; name a folder")
    points = _points(data)
    import torch
    from noiseworks.diffusion_theory.diagnosis import diagnose as run
    from noiseworks.kits.pictures import line_plot

    findings, curves = run(torch.from_numpy(points), diagnosis)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        labels = {
            "variance": (("components", "share of the variance"), (False, False)),
            "steps": (("steps", "KL of the sampler alone"), (True, True)),
            "memorisation": (("time", "effective training points"), (True, True)),
            "learning, t = 0.1": (("training points", "held-out loss"), (True, False)),
            "best loss by time": (("time", "held-out loss"), (True, False)),
        }
        for name, (axes, log) in labels.items():
            line_plot(out / f"{name.split(',')[0].replace(' ', '-')}.svg", curves[name], axes, log=log)
        write_json(
            out / "findings.json", {"settings": vars(diagnosis), "findings": findings, "curves": curves}
        )
    return findings


def propose(*, data: Path, out: Path, proposal: Spread[Proposal]) -> dict[str, Any]:
    """Propose points for a target reward from your own labelled and unlabelled points.

    Args:
        data: An .npz file with points x (n, D), rewards y (n,) and, where there are more, points unlabelled (m, D).
        out: File for the proposals, .npy.
        proposal: What is asked for.

    Returns:
        What the labels predict for the proposals, and how far the target lies from the labels.
    """
    check_file(out, (".npy",), sources=(data,))
    import numpy as np
    from noiseworks.core.arrays import read_arrays

    arrays = read_arrays(data)
    if "x" not in arrays or "y" not in arrays:
        raise InputError(f"{data} must hold points x and rewards y, it has {', '.join(arrays) or 'nothing'}")
    for name in ("x", "y", "unlabelled"):
        held = arrays.get(name, arrays["x"])
        if (
            held.dtype.kind not in "iuf"
            or not np.isfinite(held).all()
            or held.ndim != (1 if name == "y" else 2)
        ):
            raise InputError(
                f"{data}: {name} must be {'(n,)' if name == 'y' else '(n, D)'} of finite numbers"
            )
    import io

    import torch
    from noiseworks.core.artifacts import atomic_write
    from noiseworks.diffusion_theory.reward import RewardDirected

    x, y = (torch.from_numpy(arrays[name]).double() for name in ("x", "y"))
    unlabelled = (
        torch.cat([x, torch.from_numpy(arrays["unlabelled"]).double()]) if "unlabelled" in arrays else x
    )
    if proposal.dimension is None:
        values = torch.linalg.eigvalsh(torch.cov(unlabelled.T).reshape(x.shape[1], -1)).flip(0)
        dimension = int((values.cumsum(0) / values.sum() < 0.99).sum()) + 1
    else:
        dimension = proposal.dimension
    fitted = RewardDirected.fit(
        x, y, unlabelled, d=dimension, penalty=proposal.penalty, label_noise=proposal.label_noise
    )
    generator = torch.Generator().manual_seed(proposal.seed)
    points = fitted.propose(proposal.target, proposal.n, proposal.t0, generator)
    buffer = io.BytesIO()
    np.save(buffer, points.numpy())
    atomic_write(out, buffer.getvalue())
    predicted = fitted.offset + (points - fitted.center) @ fitted.basis @ fitted.theta
    return {
        "proposals": str(out),
        "dimension": dimension,
        "predicted reward": float(predicted.mean()),
        "standard deviations from the labels' mean": fitted.shift(proposal.target),
    }


def _points(path: Path) -> Any:
    """Read points (n, ...) of at least 64 rows, without torch."""
    from noiseworks.core.arrays import read_array

    found = read_array(path)
    if found.dtype.kind not in "iuf" or found.ndim < 1 or found.shape[0] < 64 or not found.size:
        raise InputError(
            f"{path} must hold at least 64 points (n, ...) of numbers, got {found.dtype} {found.shape}"
        )
    return found.reshape(len(found), -1).astype("float64")
