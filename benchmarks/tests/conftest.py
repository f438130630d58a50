"""Installs the fake claims of `fakes/` for a test, as a distribution that entry points find."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLAIMS = {
    "fake-steady": "fake_claims:STEADY",
    "fake-crash": "fake_claims:CRASH",
    "fake-nan": "fake_claims:NAN",
    "fake-slow": "fake_claims:SLOW",
    "fake-gated": "fake_claims:GATED",
    "fake-void": "fake_claims:VOID",
    "fake-given": "fake_claims:GIVEN",
    "fake-missing": "no_such_module:CLAIM",
}
COMPOSABLE = {"half": "fake_claims:HALF", "third": "fake_claims:THIRD", "other": "fake_claims:OTHER"}


def section(group, entries):
    return f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())


@pytest.fixture(scope="session")
def fakes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    shutil.copy(Path(__file__).parent / "fakes" / "fake_claims.py", folder)
    info = folder / "fakes-0.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 0.5\n")
    entries = section("noiseworks.claims", CLAIMS) + section("noiseworks.compose", COMPOSABLE)
    (info / "entry_points.txt").write_text(entries)
    return folder


@pytest.fixture
def fakes(fakes_folder, monkeypatch):
    """Make the fake claims visible to this process and to its children."""
    monkeypatch.syspath_prepend(str(fakes_folder))
    monkeypatch.setenv("PYTHONPATH", str(fakes_folder), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return fakes_folder


@pytest.fixture
def typed(tmp_path):
    """Return a function that runs `noiseworks bench ...` as a user types it."""

    def type_command(*words, **options):
        command = [str(Path(sys.executable).parent / "noiseworks"), "bench", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, **options)

    return type_command
