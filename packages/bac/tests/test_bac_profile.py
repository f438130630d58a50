import numpy as np
import pytest
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.options import METRICS, Schedule
from noiseworks.bac.plan import CachePlan, describe, make_plan
from noiseworks.bac.profiling import FeatureProfile, compare, mean_change, profile
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.replanning import DiffusionPolicy
from torch import nn

K = 8


def native(seed: int = 0) -> NativePolicy:
    torch.manual_seed(seed)
    sizes = {"obs_dim": 5, "n_layer": 2, "n_head": 2, "n_emb": 16, "horizon": 8, "n_action_steps": 4}
    policy = NativePolicy(PolicyConfig(network="transformer", num_train_timesteps=K, **sizes)).eval()
    for parameter in policy.net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return policy


def observed(policy: NativePolicy, rows: int = 3, **arguments) -> FeatureProfile:
    obs = {"obs": torch.randn(rows, 2, 5, generator=torch.Generator().manual_seed(7))}
    return profile(policy, obs, generator=torch.Generator().manual_seed(1), **arguments)


def recorded(policy: NativePolicy, obs: dict) -> torch.Tensor:
    """Return every block's outputs [K, blocks, rows, T D] of a run, kept all at once."""
    stack, found = find_stack(policy), []
    full = CachePlan.uniform(stack.blocks, K, 1)
    with attach(policy, full, fused=False, observer=lambda *seen: found.append(seen[2].flatten(1).double())):
        DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(1))
    return torch.stack(found).reshape(K, len(stack.blocks), *found[0].shape)


def test_matrices_are_the_mean_over_observations_of_those_of_the_kept_outputs():
    policy = native()
    found = observed(policy, metrics=METRICS)
    obs = {"obs": torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(7))}
    kept = recorded(policy, obs)
    for block in range(len(found.blocks)):
        for metric in METRICS:
            expected = torch.stack([compare(kept[:, block, row], metric) for row in range(3)]).mean(0).numpy()
            np.testing.assert_allclose(found.matrices[metric][block], expected, rtol=1e-4, atol=1e-5)
        changes = [
            float((kept[i, block, row] - kept[j, block, row]).abs().mean())
            for row in range(3)
            for j in range(K)
            for i in range(j)
        ]
        assert found.volatility[block] == pytest.approx(np.mean(changes), rel=1e-4)
    assert found.times.tolist() == list(range(K - 1, -1, -1))
    assert found.observations == 3
    assert not found.ascending


def test_the_profile_does_not_depend_on_how_observations_are_batched():
    policy = native()
    obs = {"obs": torch.randn(2, 2, 5)}
    together = profile(policy, obs, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    apart = [
        profile(policy, {"obs": obs["obs"][i : i + 1]}, generator=[torch.Generator().manual_seed(i)])
        for i in range(2)
    ]
    merged = apart[0].merged(apart[1])
    assert merged.observations == 2
    np.testing.assert_allclose(merged.matrices["cosine"], together.matrices["cosine"], atol=1e-5)
    with pytest.raises(InputError, match="merged"):
        merged.merged(observed(native(1)))


def test_metrics_of_known_vectors():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [4.0, -3.0]], dtype=torch.float64)
    cosine = compare(features, "cosine")
    assert cosine[0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert cosine[1, 3] == pytest.approx(0, abs=1e-15)
    assert compare(features, "l2")[1, 0] == pytest.approx(5)
    assert compare(features, "mse")[1, 0] == pytest.approx(12.5)
    assert compare(features, "l1")[1, 0] == pytest.approx(3.5)
    # Masses (3/7, 4/7) and (4/7, 3/7): 1/7 moves by one element, divided by the two elements.
    assert compare(features, "wasserstein")[1, 3] == pytest.approx(1 / 14)


def test_volatility_of_two_constant_features_is_their_distance():
    assert mean_change(torch.tensor([[0.0] * 5, [1.0] * 5])) == pytest.approx(1)
    assert mean_change(torch.zeros(1, 5)) == 0


def test_profiles_and_plans_survive_their_files(tmp_path):
    policy = native()
    found = observed(policy, metrics=("cosine", "l1"))
    found.save_pretrained(tmp_path / "profile")
    again = FeatureProfile.from_pretrained(tmp_path / "profile")
    assert again.blocks == found.blocks
    assert all(np.array_equal(again.matrices[name], found.matrices[name]) for name in ("cosine", "l1"))
    plan = make_plan(again, Schedule(updates=3, bubble=2))
    plan.save_pretrained(tmp_path / "plan")
    loaded = CachePlan.from_pretrained(tmp_path / "plan")
    assert np.array_equal(loaded.table, plan.table)
    assert (loaded.method, loaded.fingerprint, loaded.settings) == (
        plan.method,
        plan.fingerprint,
        plan.settings,
    )
    with attach(policy, loaded):
        pass
    with pytest.raises(InputError, match="weights"):
        attach(native(1), loaded)
    with pytest.raises(ArtifactError, match="kind"):
        FeatureProfile.from_pretrained(tmp_path / "plan")


def test_plans_hold_what_their_makers_say():
    found = observed(native())
    plain = make_plan(found, Schedule(updates=3, bubble=0, force_last=False))
    assert plain.updates.tolist() == [3] * len(found.blocks)
    assert plain.method == "block"
    forced = make_plan(found, Schedule(updates=3, bubble=0))
    assert forced.table[:, -1].all()
    bubbled = make_plan(found, Schedule(updates=3, bubble=2, force_last=False))
    chosen = bubbled.settings["bubbled"]
    assert chosen == [found.blocks[i] for i in np.argsort(-found.volatility, kind="stable")[:2]]
    for block in found.blocks:
        assert set(plain.schedule(block)) <= set(bubbled.schedule(block))
        assert block in chosen or plain.schedule(block) == bubbled.schedule(block)
    unified = CachePlan.unified(found, Schedule(updates=3, force_last=False))
    assert (unified.table == unified.table[0]).all()
    assert unified.schedule("layer1.ff") == plain.schedule("layer0.sa")
    uniform = CachePlan.uniform(found.blocks, 10, 4)
    assert uniform.schedule("layer0.ca") == [0, 4, 8]
    assert make_plan(found, Schedule(updates=K, bubble=0)).share == 1.0
    assert make_plan(found, Schedule(updates=1, bubble=0, force_last=False)).share == pytest.approx(1 / K)
    assert describe("layer1.ff") == "layer 1, feed-forward"


def test_flops_of_a_plan_count_its_updates():
    blocks = ("layer0.sa", "layer0.ca", "layer0.ff")
    d, t, s = 8, 4, 3
    full = CachePlan.uniform(blocks, 10, 1).flops(d, t, s)
    per_step = 8 * t * d * d + 4 * t * t * d + 4 * t * d * d + 4 * s * d * d + 4 * t * s * d + 16 * t * d * d
    assert full == 10 * per_step
    assert CachePlan.uniform(blocks, 10, 5).flops(d, t, s) == full / 5


def test_a_plan_moves_to_another_number_of_steps():
    plan = CachePlan.uniform(("layer0.sa", "layer0.ff"), 101, 10).for_steps(11)
    assert plan.schedule("layer0.ff") == list(range(11))
    shorter = CachePlan.uniform(("layer0.sa", "layer0.ff"), 9, 4).for_steps(5)
    assert shorter.schedule("layer0.sa") == [0, 2, 4]


def test_bad_profiles_and_plans_are_refused():
    policy = native()
    found = observed(policy, rows=1)
    with pytest.raises(InputError, match="metrics"):
        observed(policy, metrics=("dot",))
    with pytest.raises(InputError, match="observations"):
        profile(policy)
    with pytest.raises(InputError, match="called the network"):
        profile(policy, run=lambda: None)
    with pytest.raises(InputError, match="updates"):
        make_plan(found, Schedule(updates=K + 1))
    with pytest.raises(InputError, match="profile holds"):
        make_plan(found, Schedule(updates=2, metric="l1"))
    with pytest.raises(InputError, match="bubble"):
        make_plan(found, Schedule(updates=2, bubble=7))
    with pytest.raises(InputError, match="step 0"):
        CachePlan(np.zeros((2, 3), bool), ("layer0.sa", "layer0.ff"), "block")
    with pytest.raises(InputError, match="every"):
        CachePlan.uniform(found.blocks, K, 0)
    nn.init.constant_(policy.net.decoder.layers[1].linear1.weight, float("nan"))
    with pytest.raises(NonFiniteError, match=r"layer0|layer1"):
        observed(policy)
    assert not any("forward" in vars(m) for m in policy.net.modules())
