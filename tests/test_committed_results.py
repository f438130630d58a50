"""What is committed and shown was measured: laptop results of the present claims, and a README to match."""

import json
import shutil
from importlib.metadata import entry_points

import pytest


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


def test_every_claim_has_a_committed_laptop_result(records):
    for entry in entry_points(group="noiseworks.claims"):
        assert entry.name in records, f"commit the laptop result of {entry.name}"
        claim, text = entry.load(), json.dumps(records[entry.name])
        assert '"scale": "laptop"' in text
        for arm in claim.arms:
            assert f'"{arm.name}"' in text


def test_committed_results_keep_no_path_of_the_machine(records):
    for name, record in records.items():
        text = json.dumps(record)
        for folder in ("/home/", "/root/", "/tmp/", "/Users/"):
            assert folder not in text, f"{name} holds a path of the machine that it was measured on"
