"""Finds the installed claims by entry point, without importing them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from noiseworks.core.errors import InputError

CLAIM_GROUP = "noiseworks.claims"
COMPOSE_GROUP = "noiseworks.compose"


@dataclass(frozen=True)
class Source:
    """Where a claim comes from.

    Attributes:
        method: The method's slug, or `a+b` for a pair of composed methods.
        values: Import paths `module:object`: one `Claim`, or the two `Composable` of a pair.
        package_version: Version of the distribution (two, joined by `+`, for a pair).
        distributions: Names of the distributions, where they are known.
    """

    method: str
    values: tuple[str, ...]
    package_version: str
    distributions: tuple[str, ...] = ()


def installed(group: str) -> dict[str, Source]:
    """Return what is installed under an entry-point group by method, sorted; nothing is imported."""
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    return {
        entry.name: Source(entry.name, (entry.value,), entry.dist.version, (entry.dist.name,))
        if entry.dist
        else Source(entry.name, (entry.value,), "unknown")
        for entry in found
    }


def split_names(names: str | Iterable[str] | None) -> list[str] | None:
    """Return names given as `"a,b"` or as a sequence of such; None stays None."""
    if names is None:
        return None
    texts = [names] if isinstance(names, str) else names
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


def select_claims(methods: Sequence[str] | None) -> list[Source]:
    """Return the sources of the named claims, or of all installed ones.

    Raises:
        InputError: When a method has no installed claim, or when none is installed.
    """
    found = installed(CLAIM_GROUP)
    if not found:
        raise InputError("no claim is installed; install a method, for example noiseworks-linear-ag")
    if methods is None:
        return list(found.values())
    _check_known(methods, found, "claim")
    return [found[name] for name in methods]


def select_pairs(methods: Sequence[str] | None) -> list[Source]:
    """Return a source for every pair of the named composable methods (as ordered), or of all installed.

    Raises:
        InputError: When a method is unknown or attaches to nothing, or fewer than two are named or installed.
    """
    found = installed(COMPOSE_GROUP)
    if not found:
        raise InputError("no installed method can be composed; one registers itself under noiseworks.compose")
    names = list(found) if methods is None else list(methods)
    alone = [name for name in names if name not in found and name in installed(CLAIM_GROUP)]
    if alone:
        raise InputError(
            f"{alone[0]} attaches to no host that another method attaches to, so it is in no pair; "
            f"composable: {', '.join(found)}"
        )
    _check_known(names, found, "composable method")
    if len(names) < 2:
        known = ", ".join(found) or "none"
        raise InputError(
            f"compose needs at least two methods, got {len(names)}; installed and composable: {known}"
        )
    chosen = [found[name] for name in names]
    return [
        Source(
            f"{a.method}+{b.method}",
            a.values + b.values,
            f"{a.package_version}+{b.package_version}",
            a.distributions + b.distributions,
        )
        for index, a in enumerate(chosen)
        for b in chosen[index + 1 :]
    ]


def load(value: str) -> Any:
    """Import the object at `module:object`."""
    return EntryPoint(value, value, CLAIM_GROUP).load()


def _check_known(names: Sequence[str], found: dict[str, Source], what: str) -> None:
    unknown = [name for name in names if name not in found]
    if unknown:
        raise InputError(f"unknown {what} {', '.join(unknown)}; installed: {', '.join(found) or 'none'}")
    if not names:
        raise InputError(f"no {what} was named; installed: {', '.join(found)}")
