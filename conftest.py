"""Spreads a run of the whole suite over processes with one thread each."""

import os

import pytest

MOST_WORKERS = 4  # each may hold two gigabytes

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports torch: more threads than cores make everything slower.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes; files named on the command line run in this one."""
    return 0 if config.option.file_or_dir else min(MOST_WORKERS, os.cpu_count() or 1)
