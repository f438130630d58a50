"""Every claim is complete as data, light to import, judges on judging seeds only, and runs at the smoke scale."""

import json
from importlib.metadata import entry_points

import pytest
from noiseworks.bench.claims import SEEDS

# The first of these tests waits for every claim's smoke run.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def claim(claim_slug):
    (entry,) = entry_points(group="noiseworks.claims", name=claim_slug)
    return entry.load()


def test_claim_names_its_method_and_paper(claim, claim_slug):
    assert claim.method == claim_slug
    assert "arXiv" in claim.paper
    assert claim.statement.endswith(".")


def test_claim_has_a_method_and_something_to_compare_it_with(claim):
    roles = {arm.role for arm in claim.arms}
    assert "method" in roles
    assert roles & {"baseline", "naive"}
    names = [arm.name for arm in claim.arms]
    assert len(names) == len(set(names))


def test_targets_compare_arms_that_exist(claim):
    roles = {arm.name: arm.role for arm in claim.arms}
    assert claim.targets
    assert not claim.targets[0].guard, "the first target is the effect"
    for target in claim.targets:
        assert {target.arm, *target.rivals} <= set(roles)
        assert target.arm not in target.rivals


def test_scales_are_complete_and_judge_on_judging_seeds(claim):
    assert {"smoke", "quick", "laptop"} <= set(claim.scales)
    for name, scale in claim.scales.items():
        assert scale.seeds, name
        assert set(scale.seeds) <= set(SEEDS[name]), name
        assert len(set(scale.seeds)) == len(scale.seeds), name
        assert scale.time_limit > 0
    assert len(claim.scales["laptop"].seeds) >= len(claim.scales["quick"].seeds)


def test_claim_runs_at_the_smoke_scale(claim, claim_slug, smoke):
    """A user's run leaves a result with every arm, and a report."""
    done = (smoke / "smoke.txt").read_text()
    summaries = {one["method"]: one for one in json.loads((smoke / "smoke.json").read_text())["claims"]}
    (result,) = json.loads((smoke / "smoke/results" / f"{claim_slug}.json").read_text())["claims"]
    assert result["status"] == "judged", done[-4000:]
    assert summaries[claim_slug]["verdict"] == result["verdict"]
    measured_columns = set()
    for arm in claim.arms:
        measured = result["measurements"][arm.name]
        assert [run["seed"] for run in measured] == list(claim.scales["smoke"].seeds)
        measured_columns |= set(measured[0]["metrics"])
    assert set(claim.columns) <= measured_columns
    assert claim_slug in (smoke / "smoke/report.html").read_text()
