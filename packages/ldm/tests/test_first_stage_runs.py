"""Runs of `train-ae`: stopped and killed ones go on, longer ones too, validation, output folder and bad input."""

import csv
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.training.testing import check_resume
from noiseworks.ldm.first_stage.autoencoding import make_autoencoder, train_autoencoder
from noiseworks.ldm.first_stage.trainer import FirstStageTrainer
from noiseworks.ldm.options import AutoencoderOptions, LossOptions, RunOptions
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


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 24, 24, 3), dtype=np.uint8)
    np.savez(path, images=images)
    return path


def run(data, out, max_steps=7, **changes):
    options = RunOptions(
        max_steps=max_steps,
        batch_size=4,
        checkpoint_every=0,
        log_every=1,
        device="cpu",
        **changes,
    )
    return train_autoencoder(str(data), out, model=MODEL, loss=LOSS, run=options, validation_share=0.2)


def metrics(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_stopped_and_killed_runs_equal_an_uninterrupted_one(tmp_path, data):
    """The discriminator starts at the fourth batch; an epoch, with its validation, has four."""

    def train(folder):
        done = run(data, folder)
        assert done.batches == 7
        return load_file(done.vae / "diffusion_pytorch_model.safetensors")

    check_resume(train, tmp_path, stop_at=4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_finished_run_goes_on_to_more_steps(tmp_path, data, accumulate):
    run(data, tmp_path / "whole", 5, accumulate=accumulate)
    run(data, tmp_path / "parts", 3, accumulate=accumulate)
    assert run(data, tmp_path / "parts", 5, accumulate=accumulate).batches == 5 * accumulate
    rows = [[(r["step"], r["train/loss"]) for r in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path, data, monkeypatch):
    forward = FirstStageTrainer.forward
    monkeypatch.setattr(FirstStageTrainer, "forward", lambda self, x: forward(self, x) * float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"val/\w+ is not finite at step 4; the checkpoint of step 3 stays"
    ):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run" / "vae").exists()


def test_a_run_folder_is_complete_and_not_overwritten(tmp_path, data):
    out = tmp_path / "run"
    done = run(data, out, 2)
    assert done.vae == out / "vae"
    config = json.loads((out / "config.json").read_text())
    assert (config["model"]["factor"], config["run"]["seed"]) == (2, 0)
    vae = AutoencoderKL.from_pretrained(out / "vae")
    assert vae.config.scaling_factor == pytest.approx(done.scaling_factor)
    assert done.scaling_factor != 1
    before = (out / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=r"was begun with run\.seed 0, now run\.seed 1"):
        run(data, out, seed=1)
    assert (out / "metrics.csv").read_bytes() == before


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
