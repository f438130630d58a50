"""Whole runs over fake claims: how each claim ends, what is written, what is repeated, what is refused."""

import json
from pathlib import Path

import pytest
from noiseworks.bench.runner.discovery import select_claims, select_pairs, split_names
from noiseworks.bench.runner.execution import exclusive, parse_seeds
from noiseworks.bench.runner.results import SCHEMA, read_results
from noiseworks.bench.runner.session import bench
from noiseworks.bench.runner.tables import results_markdown
from noiseworks.core.errors import InputError

WORK = sorted(f"{what} {seed}" for what in ("prepare", "plain", "ours") for seed in (500, 501))
ENDINGS = ("fake-steady", "fake-crash", "fake-nan", "fake-slow", "fake-missing", "fake-void")


@pytest.fixture
def trace(tmp_path, monkeypatch):
    path = tmp_path / "trace.txt"
    path.touch()
    monkeypatch.setenv("FAKES_TRACE", str(path))
    return path


@pytest.mark.slow
def test_each_claim_ends_in_its_own_way_and_none_stops_another(fakes, tmp_path):
    out = tmp_path / "out"
    result = bench(methods=ENDINGS, out=out, jobs=2, open_report=False)
    claims = {claim["method"]: claim for claim in result.document["claims"]}
    assert {name: claim["status"] for name, claim in claims.items()} == {
        "fake-steady": "judged",
        "fake-crash": "failed",
        "fake-nan": "failed",
        "fake-slow": "failed",
        "fake-missing": "failed",
        "fake-void": "judged",
    }
    assert result.failed
    errors = {name: claim["failures"][0] for name, claim in claims.items() if claim["failures"]}
    assert errors["fake-crash"]["error"] == "ValueError: the network exploded"
    assert errors["fake-crash"]["seed"] == 501
    assert "'score' is not finite" in errors["fake-nan"]["error"]
    assert errors["fake-slow"]["error"] == "stopped at its time limit of 1 s"
    assert "no_such_module" in errors["fake-missing"]["error"]
    for failure in errors.values():
        assert (out / failure["log"]).is_file()
    assert "Traceback" in (out / errors["fake-crash"]["log"]).read_text()
    assert claims["fake-steady"]["verdict"] == "holds"
    assert claims["fake-void"]["verdict"] == "void"
    assert claims["fake-void"]["void_reason"].startswith("the baseline already scores 0.7")
    assert "method" in str(result.to_dict()["claims"][0])
    report = (out / "report.html").read_text()
    assert all(name in report for name in ENDINGS)


@pytest.mark.slow
def test_results_say_what_was_run_and_finished_work_is_used_again(fakes, tmp_path, trace):
    out = tmp_path / "out"
    bench(methods=["fake-steady"], out=out, jobs=2, open_report=False)
    assert sorted(trace.read_text().splitlines()) == WORK
    first = read_results(out / "results.json")
    bench(methods=["fake-steady"], seeds=["500,501"], out=out, open_report=False)
    assert sorted(trace.read_text().splitlines()) == WORK
    second = read_results(out / "results.json")
    assert first["claims"] == second["claims"]
    bench(methods=["fake-steady"], scale="smoke", out=out, open_report=False)
    assert len(trace.read_text().splitlines()) == len(WORK) + 3

    assert first["schema"] == SCHEMA
    assert first["environment"]["command"] == "noiseworks bench --methods fake-steady --scale quick"
    (claim,) = first["claims"]
    assert (claim["scale"], claim["seeds"], claim["package_version"]) == ("quick", [500, 501], "0.5")
    assert claim["targets"][0]["estimate"] == 0.75
    assert claim["targets"][0]["observations"] == 40
    assert claim["summary"]["plain"]["calls"] == {"mean": 20.0, "interval": [20.0, 20.0]}
    run = claim["measurements"]["ours"][0]
    assert len(run["metrics"]["score"]) == 20
    assert (out / run["images"]["first prompt"]).is_file()
    assert str(tmp_path) not in (out / "results" / "fake-steady.json").read_text()


def test_bad_input_is_one_line_and_writes_nothing(fakes, typed, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "old.json").write_text(json.dumps({"schema": "noiseworks-results/0", "claims": []}))
    wrong = {
        ("--methods", "nobody"): "unknown claim nobody",
        ("--seeds", "1000,x"): "seeds must be whole numbers",
        ("--methods", "fake-steady", "--out", "file/inside"): "file/inside",
        ("--methods", "fake-steady", "--compare", "old.json"): "noiseworks-results/0",
        ("compose", "--methods", "half"): "at least two methods",
    }
    before = sorted(tmp_path.iterdir())
    for words, message in wrong.items():
        done = typed(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": "huge"}, "scale must be one of"),
        ({"jobs": 0}, "jobs must be a whole number"),
        ({"model": "testbed:nothing"}, "unknown testbed model"),
        ({"compare": Path("missing.json")}, "no results file at missing.json"),
        ({"scale": "full"}, "fake-steady: no scale 'full'; it has smoke, quick, laptop"),
        ({"seeds": [1000]}, "seeds at scale 'quick' lie in 500 to 999, got 1000"),
        ({"seeds": [500], "scale": "laptop"}, "seeds at scale 'laptop' lie in 1000 to 999999, got 500"),
        ({"seeds": [10**12], "scale": "laptop"}, "999999, got 1000000000000"),
        ({"data": ["problems"]}, "data are given once each as name=path"),
        ({"data": ["problems=a", "problems=b"]}, "data are given once each"),
        ({"data": ["problems=a"]}, "no claim of this run takes data called 'problems'; they take: none"),
    ],
)
def test_bad_settings_are_refused_by_the_function_too(fakes, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        bench(methods=["fake-steady"], out=tmp_path / "out", open_report=False, **options)


def test_claim_takes_the_users_data_and_says_what_it_lacks(fakes, tmp_path):
    options = {"methods": ["fake-given"], "seeds": [500], "out": tmp_path / "out", "open_report": False}
    with pytest.raises(InputError, match=r"needs --data problems=\.\.\. \(a text file such as GSM8K's\)"):
        bench(**options)
    with pytest.raises(InputError, match="no file or folder nowhere for --data problems"):
        bench(**options, data=["problems=nowhere"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "p.txt").write_text("1 + 1")
    result = bench(**options, data=[f"problems={tmp_path / 'p.txt'}"])
    (claim,) = result.document["claims"]
    assert claim["notes"] == ["1 + 1"]
    assert result.document["environment"]["command"].endswith("--seeds 500 --data problems=p.txt")


def test_tuning_runs_judge_nothing(fakes, tmp_path):
    result = bench(methods=["fake-steady"], scale="tune", out=tmp_path / "out", open_report=False)
    (claim,) = result.document["claims"]
    assert (claim["seeds"], claim["verdict"]) == ([100, 101], "tuning")
    assert {target["verdict"] for target in claim["targets"]} == {"tuning"}
    assert claim["targets"][0]["estimate"] == 0.75
    with pytest.raises(InputError, match="tuning runs are no results"):
        results_markdown(tmp_path / "out" / "results")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with exclusive(tmp_path), pytest.raises(InputError, match="another run"), exclusive(tmp_path):
        pass


def test_names_and_seeds_are_split_at_commas():
    assert split_names(["a,b", "c", "a"]) == ["a", "b", "c"]
    assert split_names(None) is None
    assert parse_seeds("1000, 1001") == (1000, 1001)
    assert parse_seeds([1000]) == (1000,)
    for wrong in ("", "-1", "1.5", "²", "9" * 5000):
        with pytest.raises(InputError, match="seeds"):
            parse_seeds(wrong)


def test_discovery_imports_nothing(fakes):
    assert [source.values for source in select_claims(["fake-missing"])] == [("no_such_module:CLAIM",)]
    pairs = select_pairs(["half", "third", "other"])
    assert [pair.method for pair in pairs] == ["half+third", "half+other", "third+other"]
    assert pairs[0].package_version == "0.5+0.5"


def test_parent_process_does_not_import_torch(fakes, tmp_path):
    """Progress shows at once because nothing heavy is imported before the first line of it."""
    import subprocess
    import sys

    code = (
        "import sys\nfrom noiseworks.bench.cli import app\n"
        "from noiseworks.bench.runner import cluster, execution, pool, report, results\n"
        "print(sorted({'torch', 'diffusers', 'matplotlib', 'ray', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
