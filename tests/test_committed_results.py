"""What is committed and shown was measured: laptop results of the present claims, and a README to match."""

import json
import shutil
import warnings
from importlib.metadata import entry_points

import pytest
from noiseworks.bench.claims import SEEDS


@pytest.fixture(scope="module")
def records(root):
    return {
        file.stem: json.loads(file.read_text())
        for file in sorted((root / "benchmarks/results").glob("*.json"))
    }


def test_readme_table_is_generated_from_the_committed_results(root, run, tmp_path):
    """`noiseworks bench table --write README.md` changes nothing; run it after committing results."""
    page = tmp_path / "README.md"
    shutil.copy(root / "README.md", page)
    done = run("noiseworks", "bench", "table", root / "benchmarks/results", "--write", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (root / "README.md").read_text()


def test_page_without_a_place_for_the_table_is_refused(root, run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# No place\n")
    done = run("noiseworks", "bench", "table", root / "benchmarks/results", "--write", page)
    assert done.returncode == 2
    assert "results:start" in done.stderr
    assert page.read_text() == "# No place\n"


def test_committed_results_are_judged_laptop_runs_of_the_present_arms(records):
    """A claim without a result is a draft: a warning, so that a method can grow in the open."""
    for entry in entry_points(group="noiseworks.claims"):
        if entry.name not in records:
            warnings.warn(f"{entry.name} is a draft: its laptop result is not committed", stacklevel=1)
            continue
        (result,) = records[entry.name]["claims"]
        assert (result["scale"], result["status"]) == ("laptop", "judged"), entry.name
        assert set(result["seeds"]) <= set(SEEDS["laptop"]), entry.name
        assert [arm["name"] for arm in result["arms"]] == [arm.name for arm in entry.load().arms], entry.name


def test_no_result_is_left_of_a_claim_that_is_gone(records):
    assert set(records) <= {entry.name for entry in entry_points(group="noiseworks.claims")}


def test_committed_results_keep_no_path_of_the_machine(records):
    for name, record in records.items():
        text = json.dumps(record)
        for folder in ("/home/", "/root/", "/tmp/", "/Users/"):
            assert folder not in text, f"{name} holds a path of the machine that it was measured on"
