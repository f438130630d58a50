"""Runs of `train-ae`: resume after a kill, two processes, output folder, command line and bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.core.errors import InputError
from noiseworks.ldm.autoencoding import AutoencoderOptions, LossOptions, make_autoencoder, train_autoencoder
from noiseworks.ldm.runs import RunOptions
from safetensors.torch import load_file

MODEL = AutoencoderOptions(factor=2, width=8, layers=1, latent_channels=2)
LOSS = LossOptions(
    learning_rate=1e-3,
    scale_lr=False,
    feature_steps=2,
    disc_width=8,
    disc_norm="group",
    disc_start=3,
    ema_decay=0.9,
)
# Runs `train_autoencoder` with these settings; kills itself with SIGKILL before batch KILL_AT.
DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_first_stage_runs as settings
from noiseworks.ldm import first_stage

step, kill_at = first_stage.FirstStageTrainer.training_step, int(sys.argv[3])
def step_or_die(self, batch, index):
    if self.batches_done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
first_stage.FirstStageTrainer.training_step = step_or_die
settings.run(Path(sys.argv[1]), Path(sys.argv[2]), devices=int(sys.argv[4]), batch_size=int(sys.argv[5]))
"""


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 24, 24, 3), dtype=np.uint8)
    np.savez(path, images=images)
    return path


@pytest.fixture
def one_thread():
    """Sums in the order of the driver's process, which runs on one thread: equality to the bit needs that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(data, out, resume=False, devices=1, batch_size=4, batches=11, accumulate=1):
    options = RunOptions(
        batches=batches,
        batch_size=batch_size,
        accumulate=accumulate,
        checkpoint_batches=4,
        log_every=1,
        accelerator="cpu",
        devices=devices,
        resume=resume,
    )
    return train_autoencoder(str(data), out, model=MODEL, loss=LOSS, run=options, validation_share=0.2)


def drive(tmp_path, data, out, kill_at=-1, devices=1, batch_size=4):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    words = [sys.executable, script, data, out, kill_at, devices, batch_size]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=500, env=environment
    )


def metrics(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, data, one_thread):
    whole = run(data, tmp_path / "whole")
    killed = drive(tmp_path, data, tmp_path / "killed", kill_at=9)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "vae").exists()
    resumed = run(data, tmp_path / "killed", resume=True)
    assert resumed.batches == whole.batches == 11
    assert resumed.scaling_factor == whole.scaling_factor
    assert [row["step"] for row in metrics(tmp_path / "whole")] == [str(step) for step in range(1, 12)]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    weights = [
        load_file(tmp_path / name / "vae/diffusion_pytorch_model.safetensors") for name in ("whole", "killed")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(("accumulate", "stop", "end"), [(1, 7, 10), (2, 6, 10)])
def test_a_finished_run_goes_on_where_its_data_stopped(tmp_path, data, one_thread, accumulate, stop, end):
    """An epoch has 4 batches, so the first part stops within its second one."""
    run(data, tmp_path / "whole", batches=end, accumulate=accumulate)
    run(data, tmp_path / "parts", batches=stop, accumulate=accumulate)
    extended = run(data, tmp_path / "parts", batches=end, accumulate=accumulate, resume=True)
    assert extended.batches == end
    rows = [
        {row["step"]: row["train/loss"] for row in metrics(tmp_path / name)} for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_half_finished_steps_are_refused(tmp_path, data):
    with pytest.raises(InputError, match="batches must be a multiple of accumulate"):
        run(data, tmp_path / "run", batches=7, accumulate=2)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_complete_and_not_overwritten(tmp_path, data):
    out = tmp_path / "run"
    done = run(data, out, batches=2)
    assert done.vae == out / "vae"
    config = json.loads((out / "config.yaml").read_text())
    assert config["factor"] == 2
    assert config["seed"] == 0
    vae = AutoencoderKL.from_pretrained(out / "vae")
    assert vae.config.scaling_factor == pytest.approx(done.scaling_factor)
    assert done.scaling_factor != 1
    before = (out / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        run(data, out)
    with pytest.raises(InputError, match="was begun with batch_size=4"):
        run(data, out, resume=True, batch_size=5)
    assert (out / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path, data):
    one = drive(tmp_path, data, tmp_path / "one", batch_size=4)
    two = drive(tmp_path, data, tmp_path / "two", devices=2, batch_size=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    curves = [metrics(tmp_path / name) for name in ("one", "two")]
    assert [row.keys() for row in curves[0]] == [row.keys() for row in curves[1]]
    for one_row, two_row in zip(*curves, strict=True):
        for name in one_row:
            assert float(two_row[name] or 0) == pytest.approx(
                float(one_row[name] or 0), rel=1e-3, abs=1e-4
            ), name
    # Weights are not compared one by one: Adam turns the rounding noise of a gradient that is zero in exact
    # arithmetic (the bias of an attention's keys) into full steps. What the models compute is.
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        one_output, two_output = (
            AutoencoderKL.from_pretrained(tmp_path / name / "vae")(images).sample for name in ("one", "two")
        )
    torch.testing.assert_close(two_output, one_output, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 3}, "factor must be one of 1, 2, 4"),
        ({"width": 12}, "multiple of 8"),
        ({"kind": "gan"}, "kind must be one of kl, vq"),
        ({"factor": 32}, "not a multiple of f = 32"),
    ],
)
def test_bad_autoencoder_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        make_autoencoder(AutoencoderOptions(**options), size=16)


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32])
def test_every_factor_makes_latents_of_its_size(factor):
    options = AutoencoderOptions(factor=factor, width=8, layers=1)
    vae = make_autoencoder(options, size=32)
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()
        assert latents.shape[-1] == 32 // factor
        assert vae.decode(latents).sample.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "no image data at nowhere"),
        (["images.npz", "out"], "give batches or max_time"),
        (["images.npz", "out", "--batches", "0"], "batches must be a whole number of at least 1"),
        (["images.npz", "out", "--batches", "2", "--factor", "3"], "factor must be one of"),
        (["images.npz", "out", "--batches", "2", "--batch-size", "99"], "needs at least 99 examples"),
        (["images.npz", "out", "--batches", "2", "--devices", "2"], "--disc-norm group"),
        (["images.npz", "out", "--batches", "2", "--size", "64"], "size is 64"),
    ],
)
def test_bad_command_lines_are_refused_before_any_work(tmp_path, data, monkeypatch, capsys, words, message):
    from noiseworks.core.cli import run as run_app
    from noiseworks.ldm.cli import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_app(app, ["train-ae", *words])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("noiseworks-ldm:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
