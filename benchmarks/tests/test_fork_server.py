"""Workers forked from a process with the hosts loaded: same ends as in interpreters of their own."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from noiseworks.bench.runner.processes import ColdWorker, ForkedWorker, Server, hosts_of, watch
from noiseworks.bench.runner.session import bench

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and reads /proc")

JOBS = """
import json, os, subprocess, sys, time
from pathlib import Path

def run(job):
    print("printed", job["text"])
    if job["text"] == "crash":
        raise ValueError("the network exploded")
    if job["text"] == "sleep":
        child = subprocess.Popen(["sleep", "600"])
        Path(job["out"]).write_text(json.dumps([os.getpid(), child.pid]))
        time.sleep(600)
    record = {"pid": os.getpid(), "parent": os.getppid(), "xml": "xml.dom.minidom" in sys.modules}
    Path(job["out"]).write_text(json.dumps(record))

from noiseworks.bench.runner import worker
worker.MODES["test"] = run
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "extra_jobs.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Server(["extra_jobs", "xml.dom.minidom", "no_such_module"], environment(), 1, Event()) as server:
        yield server


def start(server, tmp_path, text):
    out, log = tmp_path / f"{text}.json", tmp_path / f"{text}.txt"
    job = tmp_path / f"{text}-job.json"
    job.write_text(json.dumps({"text": text, "out": str(out)}))
    return server(["test", str(job)], log, environment()), out, log


def environment():
    """Return this process's environment without the line that pytest changes."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition):
    while not condition():
        time.sleep(0.02)


@linux
def test_workers_share_what_is_loaded_and_end_as_others_do(server, tmp_path):
    worker, out, log = start(server, tmp_path, "fine")
    assert isinstance(worker, ForkedWorker)
    assert watch(worker, log, 600, Event()) is None
    record = json.loads(out.read_text())
    assert record["xml"]
    assert record["parent"] == server._process.pid
    assert log.read_text() == "printed fine\n"
    worker, _, log = start(server, tmp_path, "crash")
    assert watch(worker, log, 600, Event()) == "ValueError: the network exploded"
    assert "Traceback" in log.read_text()


@linux
@pytest.mark.parametrize("way", ["time limit", "stop", "signal"])
def test_a_worker_that_is_ended_takes_its_children_along(server, tmp_path, way):
    worker, out, log = start(server, tmp_path, "sleep")
    wait_for(lambda: out.exists() and out.read_text())
    pids = json.loads(out.read_text())
    stop = Event()
    if way == "stop":
        stop.set()
    if way == "signal":
        os.kill(pids[0], signal.SIGTERM)
    error = watch(worker, log, 0.1 if way == "time limit" else 600, stop)
    assert (
        error
        == {
            "time limit": "stopped at its time limit of 0.1 s",
            "stop": "stopped",
            "signal": "ended by signal SIGTERM",
        }[way]
    )
    wait_for(lambda: not any(map(is_running, pids)))


@linux
def test_workers_end_with_a_server_that_is_killed_and_later_ones_start_cold(server, tmp_path):
    worker, out, log = start(server, tmp_path, "sleep")
    wait_for(lambda: out.exists() and out.read_text())
    os.kill(server._process.pid, signal.SIGKILL)
    assert watch(worker, log, 600, Event()).startswith("ended by signal SIGKILL")
    wait_for(lambda: not any(map(is_running, json.loads(out.read_text()))))
    later, _, _ = start(server, tmp_path, "fine")
    assert isinstance(later, ColdWorker)
    later.end()


@linux
def test_a_worker_of_another_environment_starts_cold(server, tmp_path):
    worker = server(["test", "none"], tmp_path / "log.txt", environment() | {"HF_HUB_OFFLINE": "none"})
    assert isinstance(worker, ColdWorker)
    worker.end()


def test_hosts_are_those_that_the_distributions_require():
    assert hosts_of(["noiseworks-first-hitting"])[0] == "torch"
    assert "transformers" in hosts_of(["noiseworks-first-hitting"])
    assert "diffusers" not in hosts_of(["noiseworks-first-hitting"])
    assert "diffusers" in hosts_of(["noiseworks-linear-ag"])
    assert hosts_of(["fakes", "no-such-distribution"]) == []


@linux
@pytest.mark.slow
def test_forked_and_cold_runs_measure_the_same(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("noiseworks.bench.runner.pool.hosts_of", lambda names: ["torch"])
    options = {"methods": ["fake-steady", "fake-crash", "fake-nan"], "jobs": 2, "open_report": False}
    found = [
        bench(out=tmp_path / str(cold), cold=cold, **options).document["claims"] for cold in (True, False)
    ]
    for claims in found:
        for claim in claims:
            claim.pop("seconds")
            # One thread each where torch is loaded; the first task of the forked run starts cold.
            assert claim.pop("machine").get("threads") in (None, 1)
            for runs in claim["measurements"].values():
                for run in runs:
                    run.pop("seconds")
    cold, forked = found
    assert cold == forked
