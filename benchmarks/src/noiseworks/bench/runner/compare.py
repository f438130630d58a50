"""Names what became worse between two results files of one schema."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.display import estimate_text
from noiseworks.bench.runner.execution import Settings
from noiseworks.core.errors import InputError

RANK = {"holds": 4, "partly": 3, "no effect": 2, "void": 1, "worse": 0}


def check_comparable(path: str | Path, sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    """Read the older results file, before any work.

    Raises:
        InputError: When it cannot be read, has another schema version, or shares no judged claim with this
            run at this scale.
    """
    from noiseworks.bench.runner.results import read_results

    old = read_results(path)
    wanted = {source.method for source in sources}
    if settings.scale == "tune":
        raise InputError(
            "tuning runs are not judged, so there is nothing to compare; compare runs of another scale"
        )
    shared = [
        claim["method"]
        for claim in old["claims"]
        if claim["method"] in wanted and claim["status"] == "judged" and claim["scale"] == settings.scale
    ]
    if not shared:
        raise InputError(
            f"{path} holds no judged result of {', '.join(sorted(wanted))} at scale {settings.scale!r}; "
            "compare runs of the same claims and scale"
        )
    return old


def regressions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each regression from `old` to `new`.

    A claim regresses when it no longer runs or its verdict falls; a target when its interval lies wholly on
    the bad side of its old interval. Claims that only one file has, or has at another scale, are not
    compared.
    """
    before = {claim["method"]: claim for claim in old["claims"] if claim["status"] == "judged"}
    found = []
    for claim in new["claims"]:
        last = before.get(claim["method"])
        if last is None or last["scale"] != claim.get("scale", last["scale"]):
            continue
        if claim["status"] != "judged":
            found.append(f"{claim['method']}: was {last['verdict']!r}, now {claim['status']}")
            continue
        if RANK[claim["verdict"]] < RANK[last["verdict"]]:
            found.append(f"{claim['method']}: verdict was {last['verdict']!r}, now {claim['verdict']!r}")
        found += _worse_targets(last, claim)
    return found


def _worse_targets(last: Mapping[str, Any], claim: Mapping[str, Any]) -> list[str]:
    before = {target["name"]: target for target in last["targets"]}
    found = []
    for target in claim["targets"]:
        old = before.get(target["name"])
        if old is None or (old["metric"], old["kind"]) != (target["metric"], target["kind"]):
            continue
        (low, high), (old_low, old_high) = target["interval"], old["interval"]
        if high < old_low if target["better"] == "higher" else low > old_high:
            was, now = estimate_text(old), estimate_text(target)
            found.append(f"{claim['method']}: {target['name']} was {was}, now {now}")
    return found
