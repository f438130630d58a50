"""Training: the loss written out, the rate, and a run that goes on after a stop."""

import pytest
import torch
from noiseworks.core.errors import NonFiniteError
from noiseworks.kits.policies import (
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    PolicyTrainer,
    diffusion_loss,
)
from noiseworks.kits.training import Batches, Fit, fit, open_run
from noiseworks.kits.training.testing import check_resume

SIZES = {"obs_dim": 2, "action_dim": 2, "horizon": 4, "n_action_steps": 2, "num_train_timesteps": 10}


def policy(**options):
    torch.manual_seed(0)
    config = PolicyConfig(**(SIZES | {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 8} | options))
    normal = LinearNormalizer(torch.tensor([2.0, 0.5]), torch.tensor([0.1, -0.3]))
    return NativePolicy(config, None, normal, LinearNormalizer(torch.tensor([3.0, 1.0]), torch.zeros(2)))


def table(n=64):
    generator = torch.Generator().manual_seed(0)
    return {
        "obs": torch.rand(n, 2, 2, generator=generator) - 0.5,
        "action": torch.rand(n, 4, 2, generator=generator) - 0.5,
    }


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_written_out_error(kind):
    host, batch = policy(prediction_type=kind), table(3)
    noise, steps = torch.randn(3, 4, 2), torch.tensor([0, 4, 9])
    found = diffusion_loss(host, batch, steps, noise)
    bar = host.scheduler.alphas_cumprod[steps][:, None, None]
    clean = batch["action"] * torch.tensor([2.0, 0.5]) + torch.tensor([0.1, -0.3])
    noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    cond = (batch["obs"] * torch.tensor([3.0, 1.0])).flatten(1)
    target = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": bar.sqrt() * noise - (1 - bar).sqrt() * clean,
    }[kind]
    expected = (host.net(noisy, steps, global_cond=cond) - target).square().mean()
    torch.testing.assert_close(found, expected)


def test_padded_actions_do_not_count():
    host, batch = policy(), table(2)
    noise, steps = torch.randn(2, 4, 2), torch.tensor([1, 2])
    batch["action_is_pad"] = torch.tensor([[False, False, True, True], [False] * 4])
    found = diffusion_loss(host, batch, steps, noise)
    clean = host.normalizer.normalize(batch["action"])
    noisy = host.scheduler.add_noise(clean, noise, steps)
    error = (host.denoise(noisy, steps, host.encode(batch)) - noise).square()
    expected = torch.cat((error[0, :2].flatten(), error[1].flatten())).mean()
    torch.testing.assert_close(found, expected)


def test_weights_belong_to_diffusion_steps():
    host, batch = policy(), table(3)
    noise, steps = torch.randn(3, 4, 2), torch.tensor([2, 0, 2])
    weights = torch.tensor([0.5, 9.0, 2.0])
    rows = [
        weights[step] * diffusion_loss(host, {k: v[[i]] for k, v in batch.items()}, steps[[i]], noise[[i]])
        for i, step in enumerate(steps)
    ]
    found = diffusion_loss(host, batch, steps, noise, weights)
    torch.testing.assert_close(found, torch.stack(rows).mean())


def trainer():
    network = {"network": "transformer", "n_layer": 1, "n_head": 2, "n_emb": 8}
    return PolicyTrainer(policy(**network), warmup_steps=3, seed=5)


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path):
    """Dropout is on in this network, so its noise has to follow the step as well."""

    def train(folder):
        module = trainer()
        options = Fit(max_steps=9, batch_size=8, device="cpu", checkpoint_every=0)
        with open_run(folder, {}) as opened:
            fit(module, Batches(table(), 8), run=opened, options=options, clip=1.0, progress=False)
        assert int(module.average.updates) == 9
        assert not torch.equal(module.average.model.head.weight, module.host.net.head.weight)
        host = module.averaged_host()
        assert not host.training
        assert host.net is module.average.model
        return module.state_dict()

    check_resume(train, tmp_path, stop_at=5)


def test_a_loss_that_is_not_finite_stops_the_run():
    spoiled = table()
    spoiled["action"][:] = float("nan")
    options = Fit(max_steps=6, batch_size=8, device="cpu")
    with pytest.raises(NonFiniteError, match="loss"):
        fit(trainer(), Batches(spoiled, 8), run=None, options=options, progress=False)


@pytest.mark.parametrize(
    ("total", "step", "factor"),
    [(None, 0, 0.25), (None, 3, 1.0), (None, 900, 1.0), (104, 54, 0.5), (104, 104, 0.0), (104, 4, 1.0)],
)
def test_the_rate_warms_up_and_then_follows_a_cosine(total, step, factor):
    trainer = PolicyTrainer(policy(), warmup_steps=4, total_steps=total)
    assert trainer._factor(step) == pytest.approx(factor, abs=1e-6)
