"""Spreads a run of the suite over processes, begins each test alike, and sums up the CPU seconds of each package."""

import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from noiseworks.dev.warm import Warm, cpu_seconds

MOST_WORKERS = 4  # each may hold two gigabytes
BUDGET, BUDGET_TOGETHER = 20, 45  # CPU seconds of a package's own tests, and with those of tests/ about it
SEED = 67280421310721  # what torch begins with
ROOT = Path(__file__).parent
SLUGS = sorted((path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")), key=len, reverse=True)
spent: dict[tuple[str, str], float] = defaultdict(float)
started: list[Warm] = []

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports torch: more threads than cores make everything slower.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes; files named on the command line run in this one."""
    return 0 if config.option.file_or_dir else min(MOST_WORKERS, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """Run a program in a process forked from one that has torch and the hosts loaded, or in several at once."""
    programs = Warm(tmp_path_factory.mktemp("warm"))
    started.append(programs)
    yield programs
    programs.close()


def spent_so_far() -> float:
    """Return the CPU seconds of this process, of its children that have ended, and of the programs run warm."""
    return cpu_seconds() + sum(programs.seconds for programs in started)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test draw what it would draw alone in a fresh process, whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(SEED)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Note what a test cost, with the set-up that it was the first to need."""
    before = spent_so_far()
    yield
    item.config.stash.setdefault(COSTS, defaultdict(float))[room_of(item.nodeid)] += spent_so_far() - before


COSTS = pytest.StashKey[dict[tuple[str, str], float]]()


def room_of(nodeid: str) -> tuple[str, str]:
    """Return whose test it is (a package's slug, or a folder of the workspace), and `own` or `tests/`."""
    folder = nodeid.split("/")[0]
    if folder == "packages":
        return nodeid.split("/")[1], "own"
    named = re.search(r"\[(?:noiseworks-)?(.+)\]$", nodeid)
    slug = next((slug for slug in SLUGS if named and f"{named[1]}-".startswith(f"{slug}-")), None)
    return (slug, "tests/") if folder == "tests" and slug else (folder, "own")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the costs of a worker to the process that prints the summary."""
    costs = session.config.stash.get(COSTS, {})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["costs"] = [[*room, seconds] for room, seconds in costs.items()]
    else:
        for room, seconds in costs.items():
            spent[room] += seconds


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Add up the costs of the workers."""
    for name, kind, seconds in getattr(node, "workeroutput", {}).get("costs", []):
        spent[name, kind] += seconds


def pytest_terminal_summary(terminalreporter) -> None:
    """Print a table of CPU seconds: a package's own tests, the workspace's tests about it, and both."""
    names = sorted({name for name, _ in spent}, key=lambda name: (name not in SLUGS, name))
    if sum(spent.values()) < 1:
        return
    terminalreporter.section("CPU seconds")
    for name in names:
        own, about = spent[name, "own"], spent[name, "tests/"]
        over = name in SLUGS and (own > BUDGET or own + about > BUDGET_TOGETHER)
        mark = f"  over the budget of {BUDGET} and {BUDGET_TOGETHER}" if over else ""
        terminalreporter.write_line(f"{name:28} {own:8.1f} {about:8.1f} {own + about:8.1f}{mark}")
    terminalreporter.write_line(f"{'together':28} {sum(spent.values()):26.1f}")
