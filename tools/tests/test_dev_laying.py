"""The generator lays a package where it should, lists it in order, and refuses names that are none."""

import shutil
import tomllib
from pathlib import Path

import pytest
from noiseworks.core.errors import InputError
from noiseworks.dev.checking import check
from noiseworks.dev.laying import new
from noiseworks.dev.workspace import with_member

ROOT = Path(__file__).parents[2]
PAPER = "A Paper (ICLR 2026, arXiv 2601.01234)"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    for name in ("uv.lock", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_package_has_every_room_and_no_place_left_open(workspace):
    made = new("two-words", family="images", paper=PAPER)["files"]
    assert "packages/two-words/src/noiseworks/two_words/claim.py" in made
    assert "packages/two-words/tests/contract.py" in made
    for name in made:
        assert "<<" not in name
        assert "<<" not in (workspace / name).read_text()
    project = tomllib.loads((workspace / "packages/two-words/pyproject.toml").read_text())["project"]
    assert project["name"] == "noiseworks-two-words"
    assert project["keywords"] == ["images", "training-free"]
    cli = (workspace / "packages/two-words/src/noiseworks/two_words/cli.py").read_text()
    assert '"compare": Command(' in cli, (
        "what needs no training has this verb, see tests/test_package_rooms.py"
    )
    root = tomllib.loads((workspace / "pyproject.toml").read_text())
    assert "noiseworks-two-words[bench]" in root["dependency-groups"]["dev"]
    assert root["tool"]["uv"]["sources"]["noiseworks-two-words"] == {"workspace": True}


def test_lists_stay_sorted_and_complete(workspace):
    before = (workspace / "pyproject.toml").read_text()
    after = with_member(before, "aaa")
    entries = [line for line in after.splitlines() if line.endswith('[bench]",')]
    assert entries == sorted(entries)
    assert set(before.splitlines()) <= set(after.splitlines())
    assert with_member(after, "aaa") == after


@pytest.mark.parametrize("slug", ["", "Upper", "two words", "-x", "x-", "a/b", "..", "1st"])
def test_names_that_are_no_slug_are_refused(slug, workspace):
    with pytest.raises(InputError, match="slug"):
        new(slug, family="images", paper=PAPER)
    assert not list((workspace / "packages").iterdir())


def test_taken_slugs_and_papers_without_a_number_are_refused(workspace):
    new("mine", family="images", paper=PAPER)
    with pytest.raises(InputError, match="exists"):
        new("mine", family="images", paper=PAPER)
    with pytest.raises(InputError, match="family must be one of images"):
        new("other", family="pictures", paper=PAPER)
    with pytest.raises(InputError, match="arXiv"):
        new("other", family="images", paper="A Paper")


def test_what_is_left_of_a_package_is_none_to_check(workspace):
    (workspace / "packages/gone/src/__pycache__").mkdir(parents=True)
    for slug in ("gone", "never"):
        with pytest.raises(InputError, match=f"no package {slug}"):
            check(slug)
