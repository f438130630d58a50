"""The training kit in real processes: one that is killed, and two that train as one."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the programs below import these modules as well
from test_training import OPTIONS, Model, train

PROGRAM = """
import os, signal, subprocess, sys
sys.path.insert(0, {tests!r})
from test_training import Model, train

class Dies(Model):
    def training_step(self, batch, index):
        if self.global_step == 7:
            open_twice({out!r})
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, index)

def open_twice(out):
    code = "import sys; from noiseworks.kits.training import open_run\\nwith open_run(sys.argv[1], {{}}): pass"
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True)
    print(done.stderr.splitlines()[-1], flush=True)

train({out!r}, Dies)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on_and_no_second_trainer_enters(tmp_path, warm):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=os.path.dirname(__file__), out=str(tmp_path / "run")))
    done = warm("python", program, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "another trainer is at work" in done.stdout
    resumed, whole = train(tmp_path / "run"), train(tmp_path / "whole")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert (tmp_path / "run/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


class Sure(Model):
    """Without dropout, whose noise every process has of its own."""

    def __init__(self):
        super().__init__()
        self.net[1].p = 0.0


EXACT = replace(OPTIONS, precision="64-true", max_steps=6)
TOGETHER = """
import sys, torch
from dataclasses import replace
sys.path.insert(0, {tests!r})
from test_training_processes import EXACT, Sure, train

state = train({out!r}, Sure, replace(EXACT, devices=2))
torch.save(state, {out!r} + "-" + str(torch.distributed.get_rank()))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, warm):
    """DDP on gloo: the first process starts the second; each has half of every batch, and the first keeps the run."""
    script, out = tmp_path / "together.py", tmp_path / "run"
    script.write_text(TOGETHER.format(tests=os.path.dirname(__file__), out=str(out)))
    done = warm("python", script, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(f"{out}-{rank}", weights_only=True) for rank in (0, 1))
    for name, value in train(tmp_path / "whole", Sure, EXACT).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-9, rtol=1e-9)
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + EXACT.max_steps
