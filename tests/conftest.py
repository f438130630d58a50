"""What the workspace-wide tests know about the workspace, read from its pyproject files.

A test that takes `member`, `method`, `command` or `claim_slug` runs once for each of them, so that a new
package is held to every contract from the moment its folder exists.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from members import ROOT, Member, chosen, workspace
from noiseworks.dev.contracts import contract_of

# What a contract promises, by the fixture that a test of it takes.
PROMISES = {
    "contract": lambda contract: [contract],
    "good_line": lambda contract: contract.good,
    "bad_line": lambda contract: contract.bad,
    "attached_host": lambda contract: contract.attach,
    "artifact_name": lambda contract: contract.artifacts,
    "trainer": lambda contract: contract.resume,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    members = chosen()
    families = {
        "member": {member.name: member for member in members},
        "method": {member.name: member for member in members if member.is_method},
        "command": {name: name for member in members for name in member.scripts},
        "claim_slug": {slug: slug for member in members for slug in member.entry_points("noiseworks.claims")},
    }
    promised = next((name for name in PROMISES if name in metafunc.fixturenames), None)
    if promised:
        pairs = [
            (method, promise)
            for method in families["method"].values()
            for promise in PROMISES[promised](contract_of(method.folder))
        ]
        ids = [f"{method.folder.name}-{index}" for index, (method, _) in enumerate(pairs)]
        metafunc.parametrize(("method", promised), pairs, ids=ids)
        return
    for fixture, values in families.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, list(values.values()), ids=list(values))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def members() -> tuple[Member, ...]:
    return workspace()


@pytest.fixture(scope="session")
def run():
    """Run a program as a user without a network would, and return the completed process with its text.

    Names of installed commands are looked up beside the interpreter, so that no environment has to be active.
    """

    def run(*words, cwd=None, timeout=300, **variables) -> subprocess.CompletedProcess:
        program = Path(sys.executable).parent / str(words[0])
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200", **variables}
        return subprocess.run(
            [str(program) if program.exists() else str(words[0]), *map(str, words[1:])],
            cwd=cwd,
            env=environment,
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def smoke(run, tmp_path_factory) -> Path:
    """The folder of one `noiseworks bench --scale smoke` over all claims, which every process of a run shares.

    NOISEWORKS_METHODS names the methods, where not all of them are wanted.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / "smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "smoke.json").exists():
            words = ("bench", "--scale", "smoke", "--out", folder / "smoke", "--json")
            if "NOISEWORKS_METHODS" in os.environ:
                words += ("--methods", os.environ["NOISEWORKS_METHODS"])
            done = run("noiseworks", *words, timeout=1500)
            (folder / "smoke.json").write_text(done.stdout)
            (folder / "smoke.txt").write_text(done.stderr)
    return folder
