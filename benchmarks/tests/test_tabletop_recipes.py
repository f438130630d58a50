"""The training recipes of `tabletop`: windows, normalisers, publication and the card's figures."""

import pickle
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.tabletop import TabletopBatch, demonstrations, recipes
from noiseworks.kits.policies import NativePolicy

CONFIGS = {
    "tabletop-unet": recipes.UNET,
    "tabletop-unet-scaled": recipes.SCALED_UNET,
    "tabletop-transformer": recipes.TRANSFORMER,
}


@pytest.fixture(scope="module")
def data():
    return recipes.prepare("noisy", 24)


@pytest.fixture(scope="module")
def published(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabletop") / "model"
    torch.manual_seed(0)
    config = replace(recipes.UNET, down_dims=(8, 16), step_embed_dim=8)
    host = recipes.make_host(config, data)
    recipes.publish(SimpleNamespace(averaged_host=lambda: host), folder)
    return folder, host


def shorten(monkeypatch, steps):
    """Cut episodes to a few steps: an untrained policy would use all of them."""
    monkeypatch.setattr(recipes, "TabletopBatch", partial(TabletopBatch, max_steps=steps))


def test_rows_are_demonstrations_over_all_tasks(data):
    expected = demonstrations(2)
    assert len(data["obs"]) == len(expected.obs)  # one window for every step
    torch.testing.assert_close(data["obs"][:, -1], torch.from_numpy(expected.obs))


def test_windows_are_those_of_the_policies(data):
    assert data["obs"].shape[1:] == (2, 33)
    assert data["action"].shape[1:] == (16, 3)
    assert recipes.UNET.chunk == recipes.TRANSFORMER.chunk
    assert set(data["action"][..., 2].unique().tolist()) == {-1.0, 1.0}


def test_the_training_data_are_normalised_to_one(data):
    host = recipes.make_host(replace(recipes.UNET, down_dims=(8,)), data)
    for name, normalizer in (("action", host.normalizer), ("obs", host.obs_normalizer)):
        normal = normalizer.normalize(data[name]).flatten(0, 1)
        spread = data[name].flatten(0, 1).amax(0) > data[name].flatten(0, 1).amin(0)
        torch.testing.assert_close(normal.amax(0)[spread], torch.ones(int(spread.sum())), atol=1e-5, rtol=0)
        torch.testing.assert_close(normal.amin(0)[spread], -torch.ones(int(spread.sum())), atol=1e-5, rtol=0)


def test_a_published_policy_holds_half_precision_weights(published):
    folder, host = published
    again = NativePolicy.from_pretrained(folder)
    for name, tensor in host.net.state_dict().items():
        torch.testing.assert_close(again.net.state_dict()[name], tensor.half().float())
    assert torch.equal(again.obs_normalizer.scale, host.obs_normalizer.scale)


def test_tuning_runs_every_task_on_tuning_seeds(published, monkeypatch):
    seen = []
    reset = TabletopBatch.reset

    def watched(self, rows, tasks, seeds):
        seen.extend(zip(np.atleast_1d(tasks).tolist(), np.atleast_1d(seeds).tolist(), strict=True))
        reset(self, rows, tasks, seeds)

    monkeypatch.setattr(TabletopBatch, "reset", watched)
    shorten(monkeypatch, 9)
    figures = recipes.tune(published[0], 24)
    assert set(figures) == {"share_right", "steps"}
    assert 0 <= figures["share_right"] <= 1
    assert sorted(seen) == sorted((task, 500 + i) for task in range(12) for i in range(2))
    assert all(seed < 1000 for _, seed in seen)


def test_the_card_names_each_sampler_and_each_task(published, monkeypatch):
    shorten(monkeypatch, 2)
    figures = recipes.measure(published[0], 12)
    named = {f"success, 100 DDPM steps, task {task}" for task in range(12)}
    samplers = {"success, 100 DDPM steps", "success, 10 DDIM steps", "success, 10 DDIM steps, disturbed"}
    assert set(figures) == named | samplers
    for row in figures.values():
        assert row["low"] <= row["value"] <= row["high"]
    assert figures["success, 100 DDPM steps"]["n"] == 12


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_a_recipe_can_be_sent_to_other_processes(name, data):
    recipe = pickle.loads(pickle.dumps(recipes.RECIPES[name]))
    module = recipe.build(data)
    assert module.learning_rate == recipe.learning_rate
    assert module.host.config == CONFIGS[name]


def test_the_scaled_policy_differs_in_the_gripper_alone(data):
    recipe = recipes.RECIPES["tabletop-unet-scaled"]
    scaled = recipe.prepare("noisy", 24)
    assert torch.equal(scaled["obs"], data["obs"])
    assert torch.equal(scaled["action"][..., :2], data["action"][..., :2])
    torch.testing.assert_close(scaled["action"][..., 2], data["action"][..., 2] / 10)
    # A normaliser that fits the gripper's range would undo the scaling.
    assert recipe.build(scaled).host.normalizer.is_identity([2])
    assert recipe.about["data"]["gripper divided by"] == 10


def test_the_transformer_hears_its_condition_from_the_first_step(data):
    module = recipes.RECIPES["tabletop-transformer"].build(data)
    net, rows = module.host.net, data["obs"][:64]
    cond = module.host.encode({"obs": rows})
    memory = net.memory(torch.full((64,), 50), cond)
    # At the published initialisation this spread is 0.002.
    assert memory.std(0).mean() > 0.1


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_steps_are_weighted_by_the_root_of_noise_over_signal(name, data):
    module = recipes.RECIPES[name].build(data)
    weights, signal = module.loss_weights, module.host.scheduler.alphas_cumprod
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    odds = (1 - signal) / signal
    torch.testing.assert_close((weights[60] / weights[20]).square(), odds[60] / odds[20])
    assert weights.argmax() >= 95


def test_every_parameter_of_the_transformer_has_one_optimizer(data):
    module = recipes.RECIPES["tabletop-transformer"].build(data)
    inner, outer = (
        {id(p) for g in o.param_groups for p in g["params"]} for o in module.configure_optimizers()
    )
    assert inner | outer == {id(p) for p in module.host.net.parameters()}
    assert not inner & outer
    assert id(module.host.net.encoder[0].weight) in inner
