"""What is committed and shown was measured: laptop results of the present claims, and a README to match."""

import json
from importlib.metadata import entry_points

import pytest

MARKED = ("<!-- results:start -->", "<!-- results:end -->")


@pytest.fixture(scope="module")
def records(root):
    return {
        file.stem: json.loads(file.read_text())
        for file in sorted((root / "benchmarks/results").glob("*.json"))
    }


def test_readme_table_is_generated_from_the_committed_results(root):
    from noiseworks.bench.runner.tables import results_markdown

    start, end = MARKED
    block = (root / "README.md").read_text().split(start)[1].split(end)[0]
    assert block.strip() == results_markdown(root / "benchmarks/results").strip()


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
