"""`kill -9` at any moment: no worker is left behind, and the next run does only what was not finished."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def wait_for_worker(pid_file):
    """Return the process that runs seed 1001 of the gated claim, once seed 1000 has ended."""
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    wait_for(lambda: list(pid_file.parent.glob("out/tasks/fake-gated/quick-1000-*/result.json")))
    return int(pid_file.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_ends_the_workers_and_says_that_finished_work_is_kept(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKES_GATE", str(tmp_path / "gate"))
    noiseworks = Path(sys.executable).parent / "noiseworks"
    words = ["bench", "--methods", "fake-gated", "--jobs", "2", "--out", "out"]
    parent = subprocess.Popen([noiseworks, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    worker = wait_for_worker(tmp_path / "gate.pid")
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; finished work is kept")
    assert not is_running(worker)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_run_leaves_no_worker_and_goes_on_where_it_was(fakes, typed, tmp_path, monkeypatch):
    gate, trace = tmp_path / "gate", tmp_path / "trace"
    monkeypatch.setenv("FAKES_GATE", str(gate))
    monkeypatch.setenv("FAKES_TRACE", str(trace))
    words = ["--methods", "fake-gated", "--jobs", "2", "--no-open", "--out", "out"]
    noiseworks = Path(sys.executable).parent / "noiseworks"
    with open(tmp_path / "parent.txt", "w") as log:
        parent = subprocess.Popen([noiseworks, "bench", *words], cwd=tmp_path, stdout=log, stderr=log)
    worker = wait_for_worker(gate.with_suffix(".pid"))
    assert is_running(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_running(worker), seconds=30)

    gate.touch()
    done = typed(*words)
    assert done.returncode == 0, done.stderr
    assert "fake-gated seed 1000: reused" in done.stderr
    assert sorted(trace.read_text().splitlines()) == ["ours 1000", "ours 1001", "plain 1000", "plain 1001"]
    assert "holds" in done.stdout
