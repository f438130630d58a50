"""Training: the loss written out, runs that go on after a kill, and fine-tuning that helps when streaming."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import Episodes, LinearNormalizer, NativePolicy, PolicyConfig
from noiseworks.streaming_dp import PerStepDDPM, StreamingHost, StreamingModule, TrainConfig, convert, train
from noiseworks.streaming_dp.training import streaming_loss

SIZES = {"obs_dim": 2, "action_dim": 2, "horizon": 4, "n_action_steps": 1, "num_train_timesteps": 10}
SIZES |= {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 8}
QUIET = {"device": "cpu", "batch_size": 8, "checkpoint_every": 2, "warmup_steps": 3}


def policy(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PolicyConfig(**(SIZES | options))
        normal = LinearNormalizer(torch.tensor([2.0, 0.5]), torch.tensor([0.1, -0.3]))
        return convert(NativePolicy(config, None, normal))


def table(n=64):
    generator = torch.Generator().manual_seed(0)
    return {
        "obs": torch.rand(n, 2, 2, generator=generator) - 0.5,
        "action": torch.rand(n, 4, 2, generator=generator) - 0.5,
    }


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_written_out_error(kind):
    host, batch = policy(prediction_type=kind), table(3)
    scheduler = PerStepDDPM.from_config(host.scheduler.config)
    noise, levels = torch.randn(3, 4, 2), torch.tensor([[0, 3, 6, 9]]).repeat(3, 1)
    found = streaming_loss(host, scheduler, batch, levels, noise)
    bar = scheduler.alphas_cumprod[levels][..., None]
    clean = batch["action"] * torch.tensor([2.0, 0.5]) + torch.tensor([0.1, -0.3])
    noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": bar.sqrt() * noise - (1 - bar).sqrt() * clean,
    }[kind]
    expected = (host.net(noisy, levels, global_cond=batch["obs"].flatten(1)) - target).square().mean()
    torch.testing.assert_close(found, expected)


def test_imposed_entries_are_given_and_do_not_count():
    host, batch = policy(), table(3)
    scheduler = PerStepDDPM.from_config(host.scheduler.config)
    noise, levels = torch.randn(3, 4, 2), torch.tensor([[0, 3, 6, 9]]).repeat(3, 1)
    clean = host.normalizer.normalize(batch["action"])
    seen = []

    def impose(x, cond):
        x[:, 0] = 0.25

    host.impose = impose
    denoise = host.denoise
    host.denoise = lambda x, k, cond: seen.append(x) or denoise(x, k, cond)
    found = streaming_loss(host, scheduler, batch, levels, noise)
    noisy = scheduler.add_noise(clean, noise, levels)
    noisy[:, 0] = 0.25
    assert torch.equal(seen[0], noisy)
    error = (host.net(noisy, levels, global_cond=batch["obs"].flatten(1)) - noise).square()
    torch.testing.assert_close(found, error[:, 1:].mean())


class KilledError(Exception):
    pass


@pytest.mark.filterwarnings("ignore")
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    config = TrainConfig(max_steps=7, weights=(0.25,) * 4, **QUIET)
    whole = train(policy(), table(), tmp_path / "whole", config, progress=False)
    loss = StreamingModule.loss

    def stop(module, batch):
        if module.global_step == 5:
            raise KilledError
        return loss(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(StreamingModule, "loss", stop)
        with pytest.raises(KilledError):
            train(policy(), table(), tmp_path / "parts", config, progress=False)
    assert not (tmp_path / "parts" / "model").exists()
    with pytest.raises(InputError, match="holds a run"):
        train(policy(), table(), tmp_path / "parts", config, resume=False, progress=False)
    parts = train(policy(), table(), tmp_path / "parts", config, progress=False)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, parts.net.state_dict()[name]), name
    stored = StreamingHost.from_pretrained(tmp_path / "parts" / "model")
    assert torch.equal(stored.net.final_conv[1].weight, whole.net.final_conv[1].weight)


@pytest.mark.filterwarnings("ignore")
def test_training_on_equal_levels_alone_never_tells_positions_apart(tmp_path):
    """Equal inputs give equal gradients: the repeated layer stays repeated, so it is ordinary training."""
    config = TrainConfig(max_steps=4, weights=(1, 0, 0, 0), learning_rate=1e-2, **QUIET)
    start = policy().net.diffusion_step_encoder[1].weight
    for weights, same in ((config.weights, True), ((0, 0, 0, 1.0), False)):
        made = train(
            policy(), table(), tmp_path / str(same), replace(config, weights=weights), progress=False
        )
        layer = made.net.diffusion_step_encoder[1].weight.unflatten(1, (4, -1))
        assert not torch.allclose(layer.flatten(1), start, atol=1e-4)
        assert torch.allclose(layer, layer[:, :1].expand_as(layer), atol=1e-6) == same


def store_data(path):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(200, 3)), rng.normal(size=(200, 2)), np.arange(20, 201, 20), np.zeros(10)
    types = np.float32, np.float32, np.int64, np.int64
    Episodes(*(part.astype(kind) for part, kind in zip(parts, types, strict=True))).save(path)


def command(folder, data, steps, *more):
    words = ["train", "--out", folder, "--data", data, "--horizon", "8", "--max-steps", steps, *more]
    words += ["--checkpoint-every", "5", "--batch-size", "16", "--device", "cpu"]
    return [str(Path(sys.executable).parent / "noiseworks-streaming-dp"), *map(str, words)]


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_numbers(tmp_path):
    data = tmp_path / "data.npz"
    store_data(data)
    running = subprocess.Popen(
        command(tmp_path / "killed", data, 40), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    while not last.exists() and running.poll() is None:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    for name in ("killed", "whole"):
        subprocess.run(command(tmp_path / name, data, 40), check=True, capture_output=True, timeout=500)
    one, two = (StreamingHost.from_pretrained(tmp_path / name / "model") for name in ("killed", "whole"))
    for name, tensor in one.net.state_dict().items():
        assert torch.equal(tensor, two.net.state_dict()[name]), name


@pytest.mark.slow
def test_two_processes_train_one_policy(tmp_path):
    store_data(tmp_path / "data.npz")
    words = command(tmp_path / "run", tmp_path / "data.npz", 4, "--devices", 2, "--strategy", "ddp")
    done = subprocess.run(words, check=False, capture_output=True, timeout=500, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = StreamingHost.from_pretrained(tmp_path / "run" / "model")
    assert all(bool(tensor.isfinite().all()) for tensor in made.net.state_dict().values())


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="sum to 1"):
        TrainConfig(weights=(0.2, 0, 0, 0.7))
    with pytest.raises(InputError, match="max_steps"):
        TrainConfig(max_steps=0)
    with pytest.raises(InputError, match="convert it first"):
        train(NativePolicy(PolicyConfig(**SIZES)), table(), tmp_path)
    with pytest.raises(InputError, match="the policy needs"):
        train(policy(), {name: t[:, :2] for name, t in table().items()}, tmp_path)
    assert list(tmp_path.iterdir()) == []
