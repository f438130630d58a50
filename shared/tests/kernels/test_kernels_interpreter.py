"""Runs the Triton tests on the CPU, in a process of its own: the variable must be set before any import."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def test_triton_kernels_pass_their_tests_in_the_interpreter():
    settings = {"TRITON_INTERPRET": "1", "NOISEWORKS_KERNELS": "auto", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        HERE / "test_kernels_triton.py",
    ]
    environment = {**os.environ, **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert int(passed.group(1)) >= 60
    assert "skipped" not in done.stdout


def test_triton_kernels_compile_for_a_hopper_gpu_without_one(warm, tmp_path):
    settings = {"TRITON_INTERPRET": "0", "NOISEWORKS_KERNELS": "triton", "TRITON_CACHE_DIR": str(tmp_path)}
    done = warm("python", HERE / "compile_for_hopper.py", cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("compiled") >= 15
