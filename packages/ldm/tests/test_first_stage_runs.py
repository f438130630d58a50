"""Runs of `train-ae`: a finished one goes on, validation, output folder and bad input."""

import csv
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.ldm import train_autoencoder
from noiseworks.ldm.first_stage.autoencoding import make_autoencoder
from noiseworks.ldm.first_stage.trainer import FirstStageTrainer
from noiseworks.ldm.options import AutoencoderOptions, Images, LossOptions, RunOptions

MODEL = AutoencoderOptions(factor=2, width=8, layers=1, latent_channels=2)
LOSS = LossOptions(
    learning_rate=1e-3,
    scale_lr=False,
    feature_steps=1,
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
        log_every=1,
        device="cpu",
        **changes,
    )
    given = Images(str(data), validation_share=0.2)
    return train_autoencoder(images=given, out=out, model=MODEL, loss=LOSS, run=options)


def metrics(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_is_complete_not_overwritten_and_goes_on_to_more_steps(tmp_path, data):
    out = tmp_path / "parts"
    done = run(data, out, 2, accumulate=2)
    assert done.vae == out / "vae"
    config = json.loads((out / "config.json").read_text())
    assert (config["model"]["factor"], config["run"]["seed"]) == (2, 0)
    vae = AutoencoderKL.from_pretrained(out / "vae")
    assert vae.config.scaling_factor == pytest.approx(done.scaling_factor)
    assert done.scaling_factor != 1
    before = (out / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=r"was begun with run\.seed 0, now run\.seed 1"):
        run(data, out, 2, accumulate=2, seed=1)
    assert (out / "metrics.csv").read_bytes() == before
    assert run(data, out, 3, accumulate=2).batches == 6
    run(data, tmp_path / "whole", 3, accumulate=2)
    rows = [[(r["step"], r["train/loss"]) for r in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path, data, monkeypatch):
    forward = FirstStageTrainer.forward
    monkeypatch.setattr(FirstStageTrainer, "forward", lambda self, x: forward(self, x) * float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"val/\w+ is not finite at step 4; the checkpoint of step 3 stays"
    ):
        run(data, tmp_path / "run", checkpoint_every=0)
    assert not (tmp_path / "run" / "vae").exists()


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
