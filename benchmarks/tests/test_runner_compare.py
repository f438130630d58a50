"""What counts as a regression between two results files, and what the tables show of them."""

import copy
import json

import pytest
from noiseworks.bench.runner.compare import check_comparable, regressions
from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.execution import Settings
from noiseworks.bench.runner.results import SCHEMA, read_results
from noiseworks.bench.runner.tables import results_markdown
from noiseworks.core.errors import InputError


@pytest.fixture
def document():
    target = {
        "name": "network calls",
        "metric": "calls",
        "arm": "ours",
        "against": "plain",
        "kind": "ratio",
        "threshold": 0.75,
        "better": "lower",
        "no_effect": None,
        "guard": False,
        "estimate": 0.7,
        "interval": [0.68, 0.72],
        "observations": 40,
        "verdict": "holds",
    }
    claim = {
        "method": "a",
        "statement": "Fewer | calls.",
        "scale": "quick",
        "status": "judged",
        "verdict": "holds",
        "void_reason": None,
        "targets": [target],
    }
    return {"schema": SCHEMA, "scale": "quick", "claims": [claim]}


def changed(document, **fields):
    new = copy.deepcopy(document)
    target = new["claims"][0]["targets"][0]
    for name, value in fields.items():
        (target if name in target and name != "verdict" else new["claims"][0])[name] = value
    return new


def test_equal_runs_have_no_regression(document):
    assert regressions(document, document) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verdict": "partly"}, "verdict was 'holds', now 'partly'"),
        ({"verdict": "void"}, "now 'void'"),
        ({"status": "failed", "verdict": None}, "was 'holds', now failed"),
        ({"estimate": 0.74, "interval": [0.73, 0.75]}, "network calls was ×0.7"),
    ],
)
def test_regressions_are_named(document, fields, words):
    (sentence,) = regressions(document, changed(document, **fields))
    assert sentence.startswith("a: ")
    assert words in sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"interval": [0.71, 0.75]},
        {"interval": [0.5, 0.6]},
        {"scale": "laptop", "verdict": "worse"},
        {"method": "b", "verdict": "worse"},
    ],
)
def test_overlap_progress_and_other_runs_are_no_regression(document, fields):
    assert regressions(document, changed(document, **fields)) == []


def test_a_better_side_that_is_higher_is_respected(document):
    old = changed(document, better="higher")
    assert regressions(old, changed(old, interval=[0.6, 0.65]))
    assert not regressions(old, changed(old, interval=[0.8, 0.9]))


def test_nothing_to_compare_is_refused_before_the_run(document, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    settings = Settings("quick", None, 1, tmp_path, None, "cpu")
    source = Source("a", ("m:CLAIM",), "0.1")
    assert check_comparable(path, [source], settings) == document
    with pytest.raises(InputError, match="at scale 'laptop'"):
        check_comparable(path, [source], Settings("laptop", None, 1, tmp_path, None, "cpu"))
    with pytest.raises(InputError, match="no judged result of b"):
        check_comparable(path, [Source("b", ("m:CLAIM",), "0.1")], settings)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"schema": "noiseworks-results/2"}'])
def test_files_of_another_kind_are_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"old\.json"):
        read_results(path)


def test_markdown_table_shows_every_result(document, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(document))
    text = results_markdown(tmp_path)
    assert text.splitlines()[2] == (
        r"| `a` | Fewer \| calls. | network calls | ≤ ×0.75 | ×0.7 [×0.68, ×0.72] | holds | **holds**, 1 of 1 | quick |"
    )
    own = results_markdown(tmp_path, method="a")
    assert own.splitlines()[2] == "| network calls | ≤ ×0.75 | ×0.7 [×0.68, ×0.72] | holds | quick |"
    assert results_markdown(tmp_path, method="b") == "No results yet."
    with pytest.raises(InputError, match="no folder"):
        results_markdown(tmp_path / "missing")
