"""Claims and measurements as plain JSON values: what a worker writes and the parent process reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.bench.claims import Ceiling, Claim, Floor, Measurement, Target
from noiseworks.core.errors import InputError, NonFiniteError

MAX_POINTS = 400


def claim_record(claim: Claim, scale: str) -> dict[str, Any]:
    """Return a claim and one of its scales as JSON values; its functions stay behind.

    Raises:
        InputError: When a target or precondition names an arm that does not exist, the claim has no target or no
            arm, or two targets have one name.
    """
    _check_names(claim)
    chosen = claim.scale(scale)
    return {
        "method": claim.method,
        "paper": claim.paper,
        "statement": claim.statement,
        "testbed": claim.testbed,
        "units": claim.units,
        "version": claim.version,
        "arms": [asdict(arm) for arm in claim.arms],
        "targets": [asdict(target) for target in claim.targets],
        "columns": dict(claim.columns),
        "preconditions": [_condition(condition) for condition in claim.preconditions],
        "scale": scale,
        "seeds": list(chosen.seeds) if chosen else [],
        "time_limit": chosen.time_limit if chosen else 0.0,
        "settings": plain(chosen.settings) if chosen else {},
        "scales": list(claim.scales),
    }


def _check_names(claim: Claim) -> None:
    arms = {arm.name for arm in claim.arms}
    if not claim.targets or not arms:
        raise InputError(f"the claim of {claim.method} needs at least one arm and one target")
    known = ", ".join(sorted(arms))
    for target in claim.targets:
        if not target.rivals or not {target.arm, *target.rivals} <= arms:
            raise InputError(
                f"target {target.name!r} of {claim.method} compares {target.arm!r} with {target.against!r}, "
                f"its arms are {known}"
            )
    names = [target.name for target in claim.targets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two targets of {claim.method} are called {twice!r}; give one a name of its own")
    for condition in claim.preconditions:
        if not {condition.arm, condition.against or condition.arm} <= arms:
            raise InputError(
                f"a precondition of {claim.method} looks at {condition.arm!r} and {condition.against!r}, its arms "
                f"are {known}"
            )


def _condition(condition: Floor | Ceiling) -> dict[str, Any]:
    return {"kind": type(condition).__name__.lower(), **asdict(condition)}


def targets_of(record: Mapping[str, Any]) -> list[Target]:
    """Return the targets of a claim record."""
    return [Target(**target) for target in record["targets"]]


def measurement_record(measurement: Measurement, folder: Path) -> dict[str, Any]:
    """Return a measurement as JSON values, checked.

    Args:
        measurement: What `Claim.run` returned.
        folder: The task's folder, which holds the images.

    Returns:
        Metrics as a number or a list of numbers, series of at most 400 points each, images as file names
        relative to the folder, notes.

    Raises:
        NonFiniteError: When a metric holds NaN or infinity.
        InputError: When a metric is empty or nested, a series' x and y differ in length, or an image is
            missing.
    """
    images = {}
    for title, path in measurement.images.items():
        path = folder / path
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"image {title!r} must be a file inside the task's folder, got {path}")
        images[title] = str(path.resolve().relative_to(folder.resolve()))
    return {
        "metrics": {name: _metric(name, value) for name, value in measurement.metrics.items()},
        "series": {name: _series(name, *curve) for name, curve in measurement.series.items()},
        "images": images,
        "notes": [str(note) for note in measurement.notes],
    }


def plain(value: Any) -> Any:
    """Return nested mappings, sequences, paths, arrays and NumPy or torch numbers as JSON values."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _metric(name: str, value: float | Sequence[float]) -> float | list[float]:
    import numpy as np

    numbers = np.asarray(plain(value), dtype=np.float64)
    if numbers.ndim > 1 or numbers.size == 0:
        raise InputError(
            f"metric {name!r} must be a number or a flat, non-empty list, got shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise NonFiniteError(
            f"metric {name!r} is not finite: {int((~np.isfinite(numbers)).sum())} NaN or infinite"
        )
    return numbers.tolist()


def _series(name: str, xs: Sequence[float], ys: Sequence[float]) -> list[list[float | None]]:
    """Thin a curve evenly to `MAX_POINTS`; a NaN in it is a gap."""
    import numpy as np

    xs, ys = plain(xs), plain(ys)
    if len(xs) != len(ys):
        raise InputError(f"series {name!r} has {len(xs)} x values and {len(ys)} y values")
    kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MAX_POINTS)).round().astype(int)) if xs else []
    return [[_number(values[index]) for index in kept] for values in (xs, ys)]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
