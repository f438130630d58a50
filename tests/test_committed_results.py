"""What is committed and shown was measured: laptop results of the present claims, and a README to match."""

import json
import shutil
import warnings
from importlib.metadata import entry_points

import pytest
from noiseworks.bench.claims import SEEDS
from noiseworks.bench.runner.tables import publish
from noiseworks.core.errors import InputError


@pytest.fixture(scope="module")
def records(root):
    return {
        file.stem: json.loads(file.read_text())
        for file in sorted((root / "benchmarks/results").glob("*.json"))
    }


SHOWN = ("README.md", "docs/images/results.svg", "benchmarks/src/noiseworks/bench/judged.json")


@pytest.fixture(scope="module")
def pictures(root):
    """The drawings of claims that methods' pages show."""
    names = {
        page: f"docs/images/{page.parent.name}-claim.svg"
        for page in sorted(root.glob("packages/*/README.md"))
    }
    return [name for page, name in names.items() if f"(../../{name})" in page.read_text()]


@pytest.fixture
def workspace(root, tmp_path):
    """A folder with what `publish` reads."""
    shutil.copytree(root / "benchmarks/results", tmp_path / "benchmarks/results")
    shutil.copy(root / "README.md", tmp_path / "README.md")
    for page in root.glob("packages/*/README.md"):
        (tmp_path / page.relative_to(root)).parent.mkdir(parents=True)
        shutil.copy(page, tmp_path / page.relative_to(root))
    return tmp_path


def test_what_is_shown_is_generated_from_the_committed_results(root, workspace, pictures):
    """`noiseworks bench publish` changes nothing; run it after committing results."""
    assert publish(workspace) == {"wrote": [*SHOWN, *pictures]}
    for name in (*SHOWN, *pictures):
        assert (workspace / name).read_text() == (root / name).read_text(), name


def test_page_without_a_place_for_the_overview_is_refused(workspace):
    (workspace / "README.md").write_text("# No place\n")
    with pytest.raises(InputError, match="results:start"):
        publish(workspace)
    assert (workspace / "README.md").read_text() == "# No place\n"
    assert not (workspace / SHOWN[1]).exists()


def test_every_claim_has_a_row_that_links_to_its_page(root):
    text = (root / "README.md").read_text()
    for entry in entry_points(group="noiseworks.claims"):
        assert f"| [{entry.name}](packages/{entry.name}/README.md) |" in text


def test_committed_results_are_judged_laptop_runs_of_the_present_arms(records):
    """A claim without a result of its version is a draft: a warning, so that a method can grow in the open."""
    for entry in entry_points(group="noiseworks.claims"):
        claim = entry.load()
        if entry.name not in records:
            warnings.warn(f"{entry.name} is a draft: its laptop result is not committed", stacklevel=1)
            continue
        (result,) = records[entry.name]["claims"]
        assert (result["scale"], result["status"]) == ("laptop", "judged"), entry.name
        assert set(result["seeds"]) <= set(SEEDS["laptop"]), entry.name
        if result["version"] != claim.version:
            was = result["version"]
            warnings.warn(
                f"{entry.name} is a draft: judged at version {was}, not {claim.version}", stacklevel=1
            )
            continue
        assert [arm["name"] for arm in result["arms"]] == [arm.name for arm in claim.arms], entry.name


def test_no_result_is_left_of_a_claim_that_is_gone(records):
    assert set(records) <= {entry.name for entry in entry_points(group="noiseworks.claims")}


def test_committed_results_keep_no_path_of_the_machine(records):
    for name, record in records.items():
        text = json.dumps(record)
        for folder in ("/home/", "/root/", "/tmp/", "/Users/"):
            assert folder not in text, f"{name} holds a path of the machine that it was measured on"
