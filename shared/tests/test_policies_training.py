"""Training: the loss written out, batches as a function of the step, and a run that goes on after a stop."""

from pathlib import Path

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies import (
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    PolicyTrainer,
    diffusion_loss,
    fit,
)
from noiseworks.kits.policies.training import CHECKPOINT, WindowBatches

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


def test_batches_of_an_epoch_are_a_permutation_and_start_anywhere():
    rows = {"row": torch.arange(10)}
    loader = iter(WindowBatches(rows, 3, seed=4))
    batches = [next(loader)["row"].tolist() for _ in range(7)]
    for epoch in (batches[:3], batches[3:6]):
        assert len({row for batch in epoch for row in batch}) == 9
    assert batches[:3] != batches[3:6]
    later = iter(WindowBatches(rows, 3, seed=4, start=5))
    assert [next(later)["row"].tolist() for _ in range(2)] == batches[5:7]


def test_processes_share_each_batch_of_the_single_run():
    rows = {"row": torch.arange(8)}
    whole = iter(WindowBatches(rows, 4, seed=1))
    parts = [iter(WindowBatches(rows, 2, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    for _ in range(4):
        assert next(whole)["row"].tolist() == [row for part in parts for row in next(part)["row"].tolist()]


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        WindowBatches({"a": torch.zeros(3)}, 4)
    with pytest.raises(InputError, match="one length"):
        WindowBatches({"a": torch.zeros(9), "b": torch.zeros(8)}, 4)


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


def run(folder, steps, **options):
    trainer = PolicyTrainer(
        policy(network="transformer", n_layer=1, n_head=2, n_emb=8), warmup_steps=3, seed=5
    )
    quiet = {"batch_size": 8, "checkpoint_every": 2, "device": "cpu", "progress": False}
    fit(trainer, table(), folder, max_steps=steps, **(quiet | options))
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path):
    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 5)
    with pytest.raises(InputError, match="holds a run"):
        run(tmp_path / "parts", 9, resume=False)
    parts = run(tmp_path / "parts", 9)
    # Dropout is on in this network, so its noise has to follow the step as well.
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert int(parts.average.updates) == 9
    assert not torch.equal(parts.average.model.head.weight, parts.host.net.head.weight)
    host = parts.averaged_host()
    assert not host.training
    assert host.net is parts.average.model


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    run(tmp_path, 2)
    kept = Path(tmp_path / CHECKPOINT).read_bytes()
    trainer = PolicyTrainer(
        policy(network="transformer", n_layer=1, n_head=2, n_emb=8), warmup_steps=3, seed=5
    )
    spoiled = table()
    spoiled["action"][:] = float("nan")
    with pytest.raises(NonFiniteError):
        fit(trainer, spoiled, tmp_path, max_steps=6, batch_size=8, device="cpu", progress=False)
    assert Path(tmp_path / CHECKPOINT).read_bytes() == kept


@pytest.mark.parametrize(
    ("total", "step", "factor"),
    [(None, 0, 0.25), (None, 3, 1.0), (None, 900, 1.0), (104, 54, 0.5), (104, 104, 0.0), (104, 4, 1.0)],
)
def test_the_rate_warms_up_and_then_follows_a_cosine(total, step, factor):
    trainer = PolicyTrainer(policy(), warmup_steps=4, total_steps=total)
    assert trainer._factor(step) == pytest.approx(factor, abs=1e-6)
