"""Pairs of methods on one host: arms, the product of the gains, restoration, and a whole run."""

from dataclasses import replace
from pathlib import Path

import pytest
from noiseworks.bench.claims import Context
from noiseworks.bench.compose import pair_claim
from noiseworks.bench.runner.session import compose
from noiseworks.core.errors import InputError


@pytest.fixture
def methods(fakes):
    import fake_claims

    return fake_claims


def test_arms_measure_each_method_alone_both_and_the_product(methods, tmp_path):
    claim = pair_claim(methods.HALF, methods.THIRD)
    context = Context("quick", {"prompts": 2}, None, "cpu", Path(tmp_path), lambda *news: None)
    pair = claim.prepare(500, context)
    measured = {arm.name: claim.run(arm.name, pair, context).metrics for arm in claim.arms}
    calls = {name: metrics["calls"][0] for name, metrics in measured.items()}
    assert calls == pytest.approx(
        {"none": 20.0, "half": 10.0, "third": 20 / 3, "product": 10 / 3, "both": 10 / 3}
    )
    assert measured["both"]["score"][0] == pytest.approx(0.79)
    assert measured["product"]["score"][0] == pytest.approx(0.79)
    assert claim.run("none", pair, context).metrics["calls"][0] == 20.0, "the host is restored"


def test_a_method_that_saves_nothing_must_leave_the_other_s_saving_and_lose_no_more_than_both_alone(methods):
    changes = replace(methods.THIRD, saves=False)
    asked = {
        "one": pair_claim(methods.HALF, changes).targets,
        "other way round": pair_claim(changes, methods.HALF).targets,
        "neither": pair_claim(changes, replace(methods.HALF, saves=False)).targets,
    }
    for targets in (asked["one"], asked["other way round"]):
        against = [(target.metric, target.against, target.guard) for target in targets]
        assert against == [("calls", "third", False), ("calls", "product", True), ("score", "product", True)]
    against = [(target.metric, target.against, target.guard) for target in asked["neither"]]
    assert against == [("calls", "product", False), ("score", "product", True)]


def test_methods_of_different_hosts_are_refused(methods):
    with pytest.raises(InputError, match="compose needs one host"):
        pair_claim(methods.HALF, methods.OTHER)


def test_without_any_composable_method_compose_says_so(monkeypatch):
    monkeypatch.setattr("noiseworks.bench.runner.discovery.entry_points", lambda group: [])
    with pytest.raises(InputError, match="no installed method can be composed"):
        compose()


def test_a_method_that_attaches_to_nothing_is_in_no_pair(fakes):
    with pytest.raises(InputError, match="fake-steady attaches to no host that another method attaches to"):
        compose(methods=["half,fake-steady"])


@pytest.mark.slow
def test_compose_judges_a_pair_and_reports_one_that_cannot_be(fakes, tmp_path):
    result = compose(methods=["half,third,other"], out=tmp_path / "out", open_report=False)
    claims = {claim["method"]: claim for claim in result.document["claims"]}
    assert claims["half+third"]["verdict"] == "holds"
    assert [target["verdict"] for target in claims["half+third"]["targets"]] == ["holds"] * 4
    assert claims["half+other"]["status"] == "failed"
    assert "compose needs one host" in claims["half+other"]["failures"][0]["error"]
    assert (tmp_path / "out" / "report.html").exists()
