import numpy as np
import pytest
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.report import error_report
from noiseworks.bac.teacache import attach_teacache, count_updates, teacache_threshold
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.replanning import DiffusionPolicy
from torch import nn

K = 20


def native(prediction_type: str = "epsilon") -> NativePolicy:
    torch.manual_seed(0)
    sizes = {"obs_dim": 5, "action_dim": 2, "n_layer": 2, "n_head": 2, "n_emb": 16, "horizon": 8}
    config = PolicyConfig(
        network="transformer",
        num_train_timesteps=K,
        prediction_type=prediction_type,
        n_action_steps=4,
        **sizes,
    )
    policy = NativePolicy(config).eval()
    for parameter in policy.net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return policy


def test_the_kits_loop_serves_an_attached_host():
    policy = native()
    plan = CachePlan.uniform(find_stack(policy).blocks, K, 5)
    obs = {"obs": torch.randn(2, 2, 5)}
    seen: list[int] = []
    with attach(policy, plan, observer=lambda step, *_: seen.append(step)):
        found = DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(0))
    assert found.nfe == K
    assert sorted(set(seen)) == [0, 5, 10, 15]


def test_the_threshold_baseline_computes_about_as_often_as_asked():
    policy = native()
    obs = {"obs": torch.randn(4, 2, 5)}
    threshold = teacache_threshold(policy, obs, 6, generator=torch.Generator().manual_seed(3))
    sampler = DiffusionPolicy(policy)
    before = sampler.predict_chunk(obs, torch.Generator().manual_seed(3)).prediction
    with attach_teacache(policy, threshold, K) as handle:
        cached = sampler.predict_chunk(obs, torch.Generator().manual_seed(3)).prediction
        computed = handle.cache.computed
        assert computed[0] == 0
        assert computed[-1] == K - 1
        assert abs(len(computed) - 6) <= 2
    with attach_teacache(policy, 0.0, K):
        exact = sampler.predict_chunk(obs, torch.Generator().manual_seed(3)).prediction
    torch.testing.assert_close(exact, before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(cached, before)
    assert torch.equal(sampler.predict_chunk(obs, torch.Generator().manual_seed(3)).prediction, before)
    with pytest.raises(InputError, match="updates"):
        teacache_threshold(policy, obs, 1)


def test_updates_are_counted_by_the_accumulated_change():
    assert count_updates([1.0, 1.0, 1.0, 1.0], 2.0) == 3
    assert count_updates([0.1, 0.1, 0.1, 0.1], 10.0) == 2
    assert count_updates([0.1, 0.1, 0.1, 0.1], 0.0) == 5


def test_errors_are_zero_without_reuse_and_told_apart_with_it():
    policy = native()
    obs = {"obs": torch.randn(3, 2, 5)}
    blocks = find_stack(policy).blocks
    none = error_report(policy, CachePlan.uniform(blocks, K, 1), obs)
    assert none.action_error == 0
    assert not none.errors.any()
    report = error_report(policy, CachePlan.uniform(blocks, K, 4), obs)
    assert report.action_error > 0
    assert (report.reuse_error > 0).all()
    # Whatever is computed at step 0 is exact; the first reused outputs are off by the change of one step.
    assert not report.errors[:, 0].any()
    assert (report.errors[:, 1] > 0).all()
    assert set(report.to_dict()["blocks"]) == set(blocks)
    with pytest.raises(InputError, match="steps"):
        error_report(policy, CachePlan.uniform(blocks, K - 1, 4), obs)


def test_only_stale_inputs_make_an_update_wrong():
    policy = native()
    blocks = find_stack(policy).blocks
    table = np.ones((len(blocks), K), bool)
    stale = blocks.index("layer0.ff")
    table[stale, 1:] = False
    report = error_report(policy, CachePlan(table, blocks, "block"), {"obs": torch.randn(2, 2, 5)})
    # At step 1 the noisy actions are still the full run's: blocks before the stale one are exact.
    assert report.errors[:stale, 1].max() == 0
    assert report.errors[stale, 1] > 0
    assert (report.errors[stale + 1 :, 1] > 0).all()


def test_the_surge_of_a_feed_forward_block_is_first_order_in_its_inputs_error():
    torch.manual_seed(0)
    norm, one, two = nn.LayerNorm(6).double(), nn.Linear(6, 24).double(), nn.Linear(24, 6).double()

    def feed_forward(x):
        return two(torch.nn.functional.gelu(one(norm(x))))

    x, direction = torch.randn(6).double(), torch.randn(6).double()
    jacobian = torch.autograd.functional.jacobian(feed_forward, x)
    remainders = []
    for size in (1e-2, 1e-3):
        change = feed_forward(x + size * direction) - feed_forward(x)
        remainders.append(float((change - size * jacobian @ direction).detach().norm()))
    assert remainders[1] == pytest.approx(remainders[0] / 100, rel=0.1)
