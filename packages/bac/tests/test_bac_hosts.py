import copy
import functools
import threading
import types

import numpy as np
import pytest
import torch
from noiseworks.bac.attaching import CachedPolicy, attach
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.plan import CachePlan
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits import attachments
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.replanning import DiffusionPolicy
from torch import nn

K = 12
SIZES = {"obs_dim": 5, "n_layer": 2, "n_head": 2, "n_emb": 16, "horizon": 8, "n_action_steps": 4}


def native(**changes) -> NativePolicy:
    torch.manual_seed(0)
    config = PolicyConfig(network="transformer", num_train_timesteps=K, **{**SIZES, **changes})
    policy = NativePolicy(config).eval()
    for parameter in policy.net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return policy


class DecoderNetwork(nn.Module):
    """A host of its own: decoder layers in a list, a time argument called `noise`."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        layer = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
        self.stages = nn.ModuleList(
            nn.TransformerDecoderLayer(**layer, norm_first=norm_first) for _ in range(2)
        )
        self.inp, self.out, self.time = nn.Linear(3, 16), nn.Linear(16, 3), nn.Linear(1, 16)

    def forward(self, x, noise, condition=None):
        memory = torch.stack((condition, self.time(noise[:, None].float())), dim=1)
        x = self.inp(x)
        for stage in self.stages:
            x = stage(x, memory)
        return self.out(x)


class DiTBlock(nn.Module):
    """The parts and the arithmetic of an adaptive-norm layer as LeRobot's multi-task policy has it."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(approximate="tanh"), nn.Linear(32, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(features, 6 * width))

    def forward(self, x, features):
        parts = [part.unsqueeze(1) for part in self.adaLN_modulation(features).chunk(6, dim=1)]
        y = self.norm1(x) * (1 + parts[1]) + parts[0]
        x = x + parts[2] * self.multihead_attn(y, y, y)[0]
        return x + parts[5] * self.mlp(self.norm2(x) * (1 + parts[4]) + parts[3])


class DiTNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.transformer_blocks = nn.ModuleList(DiTBlock(16, 6) for _ in range(3))
        self.input_proj, self.output_proj = nn.Linear(3, 16), nn.Linear(16, 3)

    def forward(self, x, timestep, conditioning_vec):
        features = torch.cat((timestep[:, None].float(), conditioning_vec), dim=1)
        x = self.input_proj(x)
        for block in self.transformer_blocks:
            x = block(x, features)
        return self.output_proj(x)


class MultiTaskPolicy(nn.Module):
    """LeRobot's multi-task policy by its parts: `noise_predictor` and a flow-matching loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise_predictor = DiTNetwork()
        self.observation_encoder = types.SimpleNamespace(encode=lambda batch: batch["observation.state"])

    def predict_action_chunk(self, batch, steps=K):
        vector = self.observation_encoder.encode(batch)
        x = torch.ones(len(vector), 8, 3)
        for time in torch.linspace(0, 1, steps + 1)[:-1]:
            x = x + self.noise_predictor(x, time.expand(len(x)), conditioning_vec=vector) / steps
        return x


def calls(network: nn.Module, x: torch.Tensor, cond: torch.Tensor, steps: int = K) -> torch.Tensor:
    out = []
    with torch.inference_mode():
        for k in range(steps):
            x = x + 0.1 * network(x, torch.full((len(x),), steps - 1 - k), cond)
            out.append(x)
    return torch.stack(out)


def reference(network: nn.Module, plan: CachePlan, layers, x, cond, call) -> torch.Tensor:
    """Run the plan as its definition says: block by block, with a dictionary."""
    stack, out = find_stack(network), []
    branches = list(stack.family.branches.values())
    stored: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for k in range(plan.num_steps):
            time = torch.full((len(x),), plan.num_steps - 1 - k)
            h, bound = call(x, time, cond)
            for index, layer in enumerate(layers):
                for j, branch in enumerate(branches):
                    block = index * len(branches) + j
                    if plan.table[block, k]:
                        stored[block] = branch(layer, h, bound(layer))
                    h = h + stored[block]
            x = x + 0.1 * (network.out if hasattr(network, "out") else network.output_proj)(h)
            out.append(x)
    return torch.stack(out)


def random_plan(blocks, seed: int, steps: int = K, **changes) -> CachePlan:
    table = np.random.default_rng(seed).random((len(blocks), steps)) < 0.3
    table[:, 0] = True
    return CachePlan(table, blocks, "block", **changes)


def decoder_call(network):
    def call(x, time, cond):
        memory = torch.stack((cond, network.time(time[:, None].float())), dim=1)
        return network.inp(x), lambda layer: find_stack(network).family.bind(layer, memory)

    return call


def dit_call(network):
    def call(x, time, cond):
        features = torch.cat((time[:, None].float(), cond), dim=1)
        return network.input_proj(x), lambda layer: find_stack(network).family.bind(layer, features)

    return call


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cached_networks_equal_the_definition(seed):
    x, cond = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(seed)), torch.randn(3, 16)
    for network, layers, call, vector in (
        (net := DecoderNetwork().eval(), net.stages, decoder_call(net), cond),
        (net := DiTNetwork().eval(), net.transformer_blocks, dit_call(net), cond[:, :5]),
    ):
        plan = random_plan(find_stack(network).blocks, seed)
        expected = reference(network, plan, layers, x, vector, call)
        with attach(network, plan):
            found = calls(network, x, vector)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(found, calls(network, x, vector))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_the_policies_transformer_gives_the_same_with_and_without_its_own_forward(seed, causal):
    policy = native(causal_attn=causal)
    plan = random_plan(find_stack(policy).blocks, seed)
    x, cond = torch.randn(3, 8, 3), torch.randn(3, 2, 5)
    with attach(policy, plan, fused=False):
        plain = calls(policy.net, x, cond)
    with attach(policy, plan):
        fused = calls(policy.net, x, cond)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_the_lean_forward_pass_is_the_networks_own_up_to_rounding():
    policy = native()
    x, cond = torch.randn(3, 8, 3), torch.randn(3, 2, 5)
    expected = calls(policy.net, x, cond)
    with attach(policy, CachePlan.uniform(find_stack(policy).blocks, K, 1), exact=False):
        found = calls(policy.net, x, cond)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_computing_every_block_changes_no_bit(fused):
    policy = native()
    obs = {"obs": torch.randn(2, 2, 5)}
    sampler = DiffusionPolicy(policy)
    before = sampler.predict_chunk(obs, torch.Generator().manual_seed(1)).actions
    with attach(policy, CachePlan.uniform(find_stack(policy).blocks, K, 1), fused=fused):
        during = sampler.predict_chunk(obs, torch.Generator().manual_seed(1)).actions
    assert torch.equal(before, during)


def test_removal_leaves_nothing_behind():
    policy, network = native(), DecoderNetwork().eval()
    own = network.__dict__["forward"] = types.MethodType(DecoderNetwork.forward, network)
    obs = {"obs": torch.randn(2, 2, 5)}
    before = DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(1)).actions
    for host in (policy, network):
        plan = random_plan(find_stack(host).blocks, 0)
        handle = attach(host, plan, fused=False)
        if host is policy:
            cached = DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(1)).actions
            assert not torch.equal(cached, before)
        handle.detach()
        handle.detach()
    assert network.forward is own
    overridden = [name for m in policy.modules() for name in ("forward", "encode") if name in vars(m)]
    assert overridden == []
    after = DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(1)).actions
    assert torch.equal(before, after)


@pytest.mark.parametrize("fused", [True, False])
def test_the_observer_sees_every_computed_block_and_changes_no_bit(fused):
    policy = native()
    blocks = find_stack(policy).blocks
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    mixed = np.zeros((len(blocks), K), bool)
    mixed[:, [0, 1, 4]] = mixed[::2, 7] = True  # nothing of step 0 is reused
    for table in (np.ones((len(blocks), K), bool), mixed):
        plan = CachePlan(table, blocks, "block")
        seen: list[tuple[int, int]] = []
        with attach(policy, plan, fused=fused):
            unseen = calls(policy.net, x, cond)
        watch = functools.partial(lambda kept, step, block, _: kept.append((block, step)), seen)
        with attach(policy, plan, fused=fused, observer=watch):
            assert torch.equal(calls(policy.net, x, cond), unseen)
        assert sorted(seen) == list(zip(*(index.tolist() for index in np.nonzero(table)), strict=True))


def doubled(policy, name="twice"):
    def twice(beneath, *args, **kwargs):
        return 2 * beneath(*args, **kwargs)

    return attachments.attach(name, [attachments.Wrap(policy.net, twice)])


@pytest.mark.parametrize("first_off", [0, 1])
@pytest.mark.parametrize("plan_first", [True, False])
def test_another_method_on_the_same_network_stays_whichever_leaves_first(plan_first, first_off):
    policy = native()
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    plan = random_plan(find_stack(policy).blocks, 1)

    def outputs():
        with torch.inference_mode():
            return torch.stack([policy.net(x, torch.tensor(t), cond) for t in range(K - 1, -1, -1)])

    plain = outputs()
    with attach(policy, plan):
        cached = outputs()
    makers = [lambda: attach(policy, plan), lambda: doubled(policy)]
    handles = [make() for make in (makers if plan_first else makers[::-1])]
    torch.testing.assert_close(outputs(), 2 * cached, rtol=1e-5, atol=1e-5)
    handles.pop(first_off).detach()
    if isinstance(handles[0], CachedPolicy):
        torch.testing.assert_close(outputs(), cached, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(outputs(), 2 * plain)
    handles[0].detach()
    assert torch.equal(outputs(), plain)
    assert not any("forward" in vars(module) for module in policy.net.modules())


def test_a_method_that_drops_rows_is_refused_beside_a_plan():
    policy = native()
    plan = random_plan(find_stack(policy).blocks, 1)
    drop = [attachments.Wrap(policy.net, lambda beneath, *args: beneath(*args))]
    with attach(policy, plan), pytest.raises(UnsupportedHostError, match="drops batch rows"):
        attachments.attach("rows", drop, rows="drops")
    with attachments.attach("rows", drop, rows="drops"), pytest.raises(UnsupportedHostError, match="bac"):
        attach(policy, plan)


def test_an_old_handles_second_detach_leaves_the_new_plan_and_a_copy_is_refused():
    policy = native()
    plan = random_plan(find_stack(policy).blocks, 1)
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    old = attach(policy, plan)
    cached = calls(policy.net, x, cond)
    old.detach()
    with attach(policy, plan):
        old.detach()
        assert torch.equal(calls(policy.net, x, cond), cached)
        with pytest.raises(InputError, match="copied"):
            copy.deepcopy(policy)
    twin = copy.deepcopy(policy)
    assert torch.equal(calls(twin.net, x, cond), calls(policy.net, x, cond))


def test_two_threads_in_one_replan_are_refused():
    policy = native()
    plan = random_plan(find_stack(policy).blocks, 1)
    x, cond, found = torch.randn(2, 8, 3), torch.randn(2, 2, 5), []

    def call(time):
        with torch.inference_mode():
            policy.net(x, torch.tensor(time), cond)

    def elsewhere(time):
        try:
            call(time)
        except InputError as error:
            found.append(str(error))

    with attach(policy, plan):
        call(11)
        for time in (10, 11):  # within the replan, and a new one
            thread = threading.Thread(target=elsewhere, args=(time,))
            thread.start()
            thread.join()
    assert len(found) == 1
    assert "two threads" in found[0]


def test_replans_do_not_leak_into_each_other():
    policy = native()
    plan = random_plan(find_stack(policy).blocks, 3)
    observations = [{"obs": torch.randn(2, 2, 5)}, {"obs": torch.randn(3, 2, 5)}]

    def planned(obs):
        return DiffusionPolicy(policy).predict_chunk(obs, torch.Generator().manual_seed(4)).actions

    with attach(policy, plan):
        together = [planned(obs) for obs in observations]
    for obs, found in zip(observations, together, strict=True):
        with attach(policy, plan):
            assert torch.equal(planned(obs), found)


def test_a_shorter_run_starts_the_plan_anew():
    policy = native()
    blocks = find_stack(policy).blocks
    seen: list[tuple[int, int]] = []
    plan = CachePlan.uniform(blocks, K, 3)
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    with attach(policy, plan, observer=lambda step, block, _: seen.append((step, block))) as handle:
        for times in ([2, 1, 0], [2, 1, 0], [7, 1], [5], [5]):
            for time in times:
                policy.denoise(x, torch.tensor(time), cond)
        assert handle.cache.position == 0
        policy.encode({"obs": torch.randn(2, 2, 5)})
        assert handle.cache.position == -1
    assert [step for step, block in seen if block == 0] == [0, 0, 0, 0, 0]


def test_a_policy_with_its_own_flow_loop_is_cached_in_ascending_time():
    policy = MultiTaskPolicy().eval()
    batch = {"observation.state": torch.randn(2, 5)}
    plan = CachePlan.uniform(find_stack(policy).blocks, K, 3)
    ascending = CachePlan(plan.table, plan.blocks, "uniform", ascending=True)
    seen: list[int] = []
    with torch.no_grad(), attach(policy, ascending, observer=lambda step, *_: seen.append(step)):
        policy.predict_action_chunk(batch)
        policy.predict_action_chunk(batch)
    assert sorted(set(seen)) == [0, 3, 6, 9]
    assert len(seen) == 2 * 4 * len(plan.blocks)


def test_a_policy_of_the_original_library_is_cached_through_its_own_loop():
    own = native()
    policy = types.SimpleNamespace(
        model=own.net,
        noise_scheduler=own.scheduler,
        normalizer={"action": own.normalizer, "obs": own.obs_normalizer},
        obs_as_cond=True,
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
        action_dim=3,
    )
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    plan = random_plan(find_stack(policy).blocks, 5)
    with attach(own, plan):
        expected = calls(own.net, x, cond)
    with attach(policy, plan):
        first = calls(policy.model, x, cond)
        assert torch.equal(calls(policy.model, x, cond), first)
    assert torch.equal(first, expected)


def test_a_raising_call_clears_the_cache():
    policy = native()
    plan = CachePlan.uniform(find_stack(policy).blocks, K, 4)
    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)
    with attach(policy, plan) as handle:
        policy.denoise(x, torch.tensor(11), cond)
        with pytest.raises(InputError, match="batch changed"):
            policy.denoise(x[:1], torch.tensor(10), cond[:1])
        assert handle.cache.position == -1
        policy.denoise(x[:1], torch.tensor(10), cond[:1])


def test_unfit_hosts_and_plans_are_refused():
    with pytest.raises(UnsupportedHostError, match="U-Net"):
        find_stack(NativePolicy(PolicyConfig(obs_dim=5, down_dims=(8, 16))).eval())
    with pytest.raises(UnsupportedHostError, match="norm_first"):
        find_stack(DecoderNetwork(norm_first=False).eval())
    with pytest.raises(InputError, match="training mode"):
        find_stack(native().train())
    policy = native()
    blocks = find_stack(policy).blocks
    with pytest.raises(InputError, match="blocks"):
        attach(policy, CachePlan.uniform(blocks[:3], K, 2))
    with pytest.raises(InputError, match="weights"):
        attach(policy, CachePlan(np.ones((len(blocks), K), bool), blocks, "full", fingerprint="0" * 16))
    with attach(policy, CachePlan.uniform(blocks, 3, 2)), pytest.raises(InputError, match="3 steps"):
        calls(policy.net, torch.randn(1, 8, 3), torch.randn(1, 2, 5))
    with attach(policy, CachePlan.uniform(blocks, K, 2)), pytest.raises(InputError, match="attached"):
        attach(policy, CachePlan.uniform(blocks, K, 2))
