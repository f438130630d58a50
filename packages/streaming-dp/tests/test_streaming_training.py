"""Training: the loss written out, runs that go on, and what equal levels can learn."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import LinearNormalizer, NativePolicy, PolicyConfig
from noiseworks.kits.training import check_run
from noiseworks.kits.training.testing import stopping
from noiseworks.streaming_dp import PerStepDDPM, StreamingHost, TrainConfig, convert, train
from noiseworks.streaming_dp.training import streaming_loss

SIZES = {"obs_dim": 2, "action_dim": 2, "horizon": 4, "n_action_steps": 1, "num_train_timesteps": 10}
SIZES |= {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 8}
QUIET = {"device": "cpu", "batch_size": 8, "checkpoint_every": 0, "warmup_steps": 3}


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


def test_a_run_refuses_other_settings_in_its_folder(tmp_path):
    config = TrainConfig(max_steps=2, **QUIET)
    with stopping(1):
        train(policy(), table(), tmp_path / "run", config, settings={"model": "a"}, progress=False)
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(InputError, match="learning_rate"):
        train(policy(), table(), tmp_path / "run", replace(config, learning_rate=1e-3), progress=False)
    # What the command knows before it loads anything: it goes on, or is refused.
    check_run(tmp_path / "run", {"model": "a", "fit": config})
    with pytest.raises(InputError, match="learning_rate"):
        check_run(tmp_path / "run", {"model": "a", "fit": replace(config, learning_rate=1e-3)})
    with pytest.raises(InputError, match="begun with model 'a', now model 'b'"):
        train(policy(), table(), tmp_path / "run", config, settings={"model": "b"}, progress=False)
    made = train(
        policy(),
        table(),
        tmp_path / "run",
        replace(config, half=True),
        settings={"model": "a"},
        progress=False,
    )
    stored = StreamingHost.from_pretrained(tmp_path / "run" / "model").net.final_conv[1].weight
    assert torch.equal(stored, made.net.final_conv[1].weight.half().float())


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
