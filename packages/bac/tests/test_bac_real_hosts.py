"""Plans on the classes that users have: LeRobot's multi-task DiT policy and diffusers' DiT pipeline, tiny."""

import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from noiseworks.bac.attaching import attach
from noiseworks.bac.hosts import find_stack
from noiseworks.bac.options import Pictures, Schedule
from noiseworks.bac.pipelines import compare_pipeline
from noiseworks.bac.plan import CachePlan, make_plan
from noiseworks.bac.profiling import profile
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.tiny import tiny_pipeline
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.policies.testing import (
    TRAIN_STEPS,
    instructed,
    lerobot_evaluation,
    tiny_multi_task,
    tiny_text_encoder,
)
from torch import nn

STEPS = 8


def lively(network: nn.Module) -> nn.Module:
    """Give all weights some size: adaptive-norm layers start with gates of 0, which hide every error."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def lerobot():
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.multi_task_dit import modeling_multi_task_dit as modeling
    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=8, **sizes))

    def make(**changes):
        config = MultiTaskDiTConfig(
            input_features={"observation.state": PolicyFeature(FeatureType.STATE, (4,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
            horizon=8,
            n_action_steps=4,
            hidden_dim=16,
            num_layers=2,
            num_heads=2,
            timestep_embed_dim=8,
            num_train_timesteps=STEPS,
            num_integration_steps=STEPS,
            device="cpu",
            **changes,
        )
        with pytest.MonkeyPatch.context() as patch:  # the class loads its text encoder from the hub
            patch.setattr(modeling, "CLIPTextModel", types.SimpleNamespace(from_pretrained=lambda _: text))
            policy = modeling.MultiTaskDiTPolicy(config)
        lively(policy.noise_predictor)
        return policy.eval()

    return make


def chunk(policy, rows: int = 2) -> torch.Tensor:
    """Return the actions of one replan, [rows, 4, 3], from a fixed observation and noise."""
    policy.reset()
    generator = torch.Generator().manual_seed(1)
    batch = {
        "observation.state": torch.randn(rows, 4, generator=generator),
        "observation.language.tokens": torch.ones(rows, 5, dtype=torch.int64),
        "observation.language.attention_mask": torch.ones(rows, 5, dtype=torch.int64),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        first = policy.select_action(batch)
    return torch.stack([first, *policy._queues["action"]], dim=1)


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"objective": "diffusion", "use_rope": True}, 1),
        ({"objective": "flow_matching", "use_rope": False}, 1),
        ({"objective": "flow_matching", "integration_method": "rk4"}, 4),
    ],
)
def test_lerobots_multi_task_policy_follows_a_plan_of_its_own_run_and_gets_its_bits_back(
    lerobot, settings, calls
):
    policy = lerobot(**settings)
    before = chunk(policy)
    found = profile(policy, run=lambda: chunk(policy), calls_per_step=calls)
    assert (found.num_steps, found.observations) == (STEPS, 2)
    assert found.ascending == (settings["objective"] == "flow_matching")
    assert found.blocks == ("layer0.sa", "layer0.ff", "layer1.sa", "layer1.ff")

    every = make_plan(found, Schedule(updates=STEPS, bubble=0))
    assert every.share == 1
    with attach(policy, every):
        assert torch.equal(chunk(policy), before)

    plan, seen = make_plan(found, Schedule(updates=3, bubble=1)), []
    with attach(policy, plan, observer=lambda step, block, _: seen.append((block, step))):
        cached = chunk(policy)
        assert torch.equal(chunk(policy), cached)
        assert chunk(policy, rows=3).shape == (3, 4, 3)
    assert not torch.equal(cached, before)
    computed = {(block, step) for block, step in zip(*np.nonzero(plan.table), strict=True)}
    assert set(seen) == computed
    assert len(seen) == 3 * calls * len(computed)
    assert torch.equal(chunk(policy), before)


@pytest.mark.parametrize("objective", ["diffusion", "flow_matching"])
def test_lerobots_own_evaluation_runs_a_plan_attached_or_by_the_type_of_a_directory(objective, tmp_path):
    import noiseworks.bac.lerobot.plugin  # noqa: F401, as --discover_packages_path imports it
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies import get_policy_class
    from noiseworks.bac.lerobot import write_lerobot

    policy = tiny_multi_task(objective=objective)
    before = lerobot_evaluation(policy, policy.noise_predictor)
    state = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    policy.reset()
    found = profile(policy, run=lambda: policy.select_action(instructed({"observation.state": state})))
    assert found.num_steps == TRAIN_STEPS
    plan, seen = make_plan(found, Schedule(updates=3, bubble=1)), []
    with attach(policy, plan, observer=lambda step, block, _: seen.append(block)):
        cached = lerobot_evaluation(policy, policy.noise_predictor)
    assert cached.calls == before.calls
    assert len(seen) == before.calls // found.num_steps * plan.table.sum()
    assert not torch.equal(cached.actions, before.actions)
    with attach(policy, plan):  # LeRobot's own recorder keeps the roll-outs
        kept = lerobot_evaluation(policy, policy.noise_predictor, episodes=2, recording=tmp_path / "kept")
    assert torch.equal(kept.actions, cached.actions[:2])
    for number, actions in enumerate(kept.actions):
        table = pq.read_table(tmp_path / "kept" / f"env_{number}" / "data")
        assert np.array_equal(np.stack(table["action"].to_pylist()).astype(np.float32), actions.numpy())
    assert torch.equal(lerobot_evaluation(policy, policy.noise_predictor).actions, before.actions)

    policy.save_pretrained(tmp_path / "base")
    plan.save_pretrained(tmp_path / "plan")
    write_lerobot(tmp_path / "base", tmp_path / "plan", tmp_path / "both")
    config = PreTrainedConfig.from_pretrained(tmp_path / "both")
    with tiny_text_encoder():
        loaded = get_policy_class(config.type).from_pretrained(tmp_path / "both", config=config)
    assert torch.equal(lerobot_evaluation(loaded, loaded.noise_predictor).actions, cached.actions)
    with pytest.raises(InputError, match="multi_task_dit"):
        write_lerobot(tmp_path / "both", tmp_path / "plan", tmp_path / "third")


def test_diffusers_dit_pipeline_with_guidance_follows_a_plan_and_gets_its_bits_back():
    pipe = tiny_pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    lively(pipe.transformer)

    def image(scale: float = 3.0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        arguments = {"num_inference_steps": STEPS, "generator": generator, "output_type": "np"}
        return torch.from_numpy(pipe(class_labels=[1, 7], guidance_scale=scale, **arguments).images)

    before = image()
    found = profile(pipe, run=image)
    assert (found.num_steps, found.observations) == (STEPS, 4)  # guidance doubles the rows
    with attach(pipe, CachePlan.uniform(found.blocks, STEPS, 1)):
        assert torch.equal(image(), before)
    seen: list[int] = []
    plan = make_plan(found, Schedule(updates=3, bubble=0))
    with attach(pipe, plan, observer=lambda step, *_: seen.append(step)):
        cached = image()
        image(1.0)
    assert not torch.equal(cached, before)
    assert len(seen) == 2 * plan.table.sum()
    assert torch.equal(image(), before)


def native() -> NativePolicy:
    sizes = {"obs_dim": 5, "n_layer": 2, "n_head": 2, "n_emb": 16, "horizon": 8, "n_action_steps": 4}
    policy = NativePolicy(PolicyConfig(network="transformer", num_train_timesteps=STEPS, **sizes)).eval()
    lively(policy.net)
    return policy


def random_table(blocks, seed: int = 0) -> np.ndarray:
    table = np.random.default_rng(seed).random((len(blocks), STEPS)) < 0.4
    table[:, 0] = True
    return table


@pytest.mark.parametrize("fused", [True, False])
def test_each_of_a_steps_calls_reuses_its_own_outputs(fused):
    policy = native()
    x, conds = torch.randn(STEPS, 2, 8, 3), torch.randn(2, 2, 2, 5)
    blocks = find_stack(policy).blocks
    plan = CachePlan(random_table(blocks), blocks, "block")

    def outputs(which):
        times = range(STEPS - 1, -1, -1)
        with torch.inference_mode():
            return [
                [policy.denoise(noisy, torch.tensor(time), conds[i]) for i in which]
                for noisy, time in zip(x, times, strict=True)
            ]

    alone = []
    for i in range(2):
        with attach(policy, plan, fused=fused):
            alone.append(torch.stack([row[0] for row in outputs([i])]))
    both = CachePlan(plan.table, blocks, "block", calls_per_step=2)
    with attach(policy, both, fused=fused):
        outputs([0, 1])
        together = outputs([0, 1])  # the second replan: nothing of the first is left
    for i in range(2):
        assert torch.equal(torch.stack([row[i] for row in together]), alone[i])
    with attach(policy, plan, fused=fused), pytest.raises(InputError, match="calls_per_step"):
        outputs([0, 1])


def test_a_last_step_of_one_call_ends_heuns_replan():
    policy = native()
    x, cond = torch.randn(1, 8, 3), torch.randn(1, 2, 5)
    blocks = find_stack(policy).blocks
    plan = CachePlan.uniform(blocks, 3, 1, calls_per_step=2)
    seen: list[int] = []
    with attach(policy, plan, fused=False, observer=lambda step, *_: seen.append(step)):
        for _ in range(2):
            for time in (6, 4, 4, 2, 2):
                policy.denoise(x, torch.tensor(time), cond)
    assert seen[:: len(blocks)] == [0, 0, 1, 1, 2] * 2


def test_profiles_of_several_calls_a_step_are_means_over_whole_series():
    policy = native()
    x, cond = torch.randn(1, 8, 3), torch.randn(1, 2, 5)

    def run(times):
        return lambda: [policy.denoise(x * (1 + t), torch.tensor(t), cond) for t in times]

    first, second = profile(policy, run=run([6, 4, 2])), profile(policy, run=run([5, 3, 1]))
    both = profile(policy, run=run([6, 5, 4, 3, 2, 1]), calls_per_step=2)
    heun = profile(policy, run=run([6, 5, 4, 3, 2]), calls_per_step=2)
    mean = (first.matrices["cosine"] + second.matrices["cosine"]) / 2
    np.testing.assert_allclose(both.matrices["cosine"], mean, atol=1e-6)
    np.testing.assert_allclose(heun.matrices["cosine"], first.matrices["cosine"], atol=1e-6)
    assert both.times.tolist() == heun.times.tolist() == [6, 4, 2]
    assert make_plan(both, Schedule(updates=2)).calls_per_step == 2
    with pytest.raises(InputError, match="merged"):
        both.merged(heun.merged(heun)).merged(first)


def test_steps_that_are_computed_whole_do_not_hand_the_condition_of_one_replan_to_the_next():
    policy = native()
    blocks = find_stack(policy).blocks
    table = np.zeros((len(blocks), STEPS), bool)
    table[:, :2] = True  # nothing of step 0 is reused, so it runs the network's own forward pass
    plan = CachePlan(table, blocks, "block")
    x, conds = torch.randn(2, 8, 3), torch.randn(2, 2, 2, 5)

    def last(cond):
        with torch.inference_mode():
            return [policy.denoise(x, torch.tensor(t), cond) for t in range(STEPS - 1, -1, -1)][-1]

    with attach(policy, plan):
        alone = last(conds[1])
    with attach(policy, plan):
        last(conds[0])
        assert torch.equal(last(conds[1]), alone)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_networks_follow_a_plan_and_are_compiled_again_afterwards(in_place):
    policy, twin = native(), native()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    x, cond = torch.randn(2, 8, 3), torch.randn(2, 2, 5)

    def outputs(host):
        with torch.inference_mode():
            return torch.stack([host.denoise(x, torch.tensor(t), cond) for t in range(STEPS - 1, -1, -1)])

    torch._dynamo.reset()
    if in_place:
        policy.net.compile(backend=backend)
    else:
        policy.net = torch.compile(policy.net, backend=backend)
    called = policy.net
    before, count = outputs(policy), len(graphs)
    torch.testing.assert_close(before, outputs(twin))
    assert count > 0
    obs = {"obs": torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))}
    profiles = [profile(host, obs, generator=torch.Generator().manual_seed(1)) for host in (policy, twin)]
    np.testing.assert_allclose(*(found.matrices["cosine"] for found in profiles), rtol=1e-5)
    plan = make_plan(
        profiles[1], Schedule(updates=3, bubble=1)
    )  # the fingerprint is the uncompiled network's
    for fused in (True, False):
        with attach(twin, plan, fused=fused):
            expected = outputs(twin)
        with attach(policy, plan, fused=fused):
            assert torch.equal(outputs(policy), expected)
            with pytest.raises(InputError, match="attached"):
                attach(policy, plan)
    assert len(graphs) == count  # nothing was traced while the plan was attached
    assert policy.net is called
    assert torch.equal(outputs(policy), before)
    assert len(graphs) == count


def test_a_dit_pipeline_is_compared_with_what_else_saves_time_and_left_as_it_was():
    pipe = tiny_pipeline("dit")
    lively(pipe.transformer)
    held = {name: set(vars(module)) for name, module in pipe.transformer.named_modules()}
    pictures = Pictures(labels=(1, 7), pipeline_steps=STEPS, guidance_scale=3.0)
    rows = compare_pipeline(pipe, Schedule(updates=2, bubble=1), pictures, 2)
    assert rows["full"]["error"] == 0
    assert rows["full"]["times_faster"] == 1
    assert rows["uniform"]["share"] == pytest.approx(0.25)
    assert rows["2 steps"]["error"] > 0
    assert all(np.isfinite(list(filter(None, row.values()))).all() for row in rows.values())
    assert rows["FirstBlockCache 0.4"]["error"] >= rows["FirstBlockCache 0.05"]["error"] >= 0
    assert {name: set(vars(module)) for name, module in pipe.transformer.named_modules()} == held
