"""`kill -9` at any moment: no worker is left behind, and the next run does only what was not finished."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def wait_for(condition):
    """Wait for an event however long it takes on a busy machine; the suite's own limit is for hangs."""
    while not condition():
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def heed_ctrl_c():
    """Undo what a shell does to the jobs that it starts in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_worker(pid_file):
    """Return the process that runs seed 501 of the gated claim, once seed 500 has ended."""
    wait_for(pid_file.exists)
    wait_for(lambda: list(pid_file.parent.glob("out/tasks/fake-gated/quick-500-*/result.json")))
    return int(pid_file.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_ends_the_workers_and_says_that_finished_work_is_kept(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKES_GATE", str(tmp_path / "gate"))
    noiseworks = Path(sys.executable).parent / "noiseworks"
    words = ["bench", "--methods", "fake-gated", "--jobs", "2", "--out", "out"]
    parent = subprocess.Popen(
        [noiseworks, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    worker = wait_for_worker(tmp_path / "gate.pid")
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate()  # ends when it ends; the suite's own limit is for hangs
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
    wait_for(lambda: not is_running(worker))

    gate.touch()
    done = typed(*words)
    assert done.returncode == 0, done.stderr
    assert "fake-gated seed 500: reused" in done.stderr
    # The killed seed was prepared twice and measured once.
    done_once = ["ours 500", "ours 501", "plain 500", "plain 501", "prepare 500"]
    assert sorted(trace.read_text().splitlines()) == [*done_once, "prepare 501", "prepare 501"]
    assert "holds" in done.stdout
