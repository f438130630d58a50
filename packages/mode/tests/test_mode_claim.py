"""The claim's arms on untrained models: what is measured, and when it is void."""

import pytest
import torch
from noiseworks.bench.claims import Context
from noiseworks.mode import claim
from noiseworks.mode.catalogue import testbed_models
from noiseworks.mode.config import Demonstrations, SmallArchitecture
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.models import load_model
from noiseworks.mode.runs import new_model
from noiseworks.mode.task_data import load_task_data


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    data = load_task_data(Demonstrations("tabletop", 1))
    for name, experts, top_k, factor in (
        ("mode", 4, 2, 4),
        ("dense-large", 1, 1, 16),
        ("dense-small", 1, 1, 8),
    ):
        shape = SmallArchitecture(
            width=16, num_layers=2, num_heads=2, num_experts=experts, top_k=top_k, expert_factor=factor
        )
        new_model(data, shape).save_pretrained(root / name, dtype=torch.float16)
    folder = tmp_path_factory.mktemp("out")
    settings = {"episodes": 1, "replans": 2, "max_steps": 40}
    return Context("smoke", settings, str(root), "cpu", folder, lambda *args: None)


def test_arms_share_episodes_and_the_cache_is_exact_and_always_hit(context):
    shared = claim.prepare(500, context)
    found = {arm.name: claim.run(arm.name, shared, context) for arm in claim.CLAIM.arms}
    for measured in found.values():
        assert len(measured.metrics["success"]) == 12
        assert len(measured.metrics["milliseconds"]) == 2
    cached, routed = found["cached"].metrics, found["routed"].metrics
    assert cached["success"] == routed["success"]
    assert 0 <= cached["roundings"] < claim.ROUNDINGS
    assert (cached["misses"], routed["misses"]) == (0, 0)
    assert cached["megaflops"] < 0.6 * found["dense_large"].metrics["megaflops"]
    assert found["cached"].images["experts by noise level"].is_file()
    for target in claim.CLAIM.targets:
        assert target.metric in found[target.arm].metrics
        assert target.metric in found[target.against].metrics


def test_operations_are_those_of_the_formulas():
    config = load_model("testbed:mode").config
    width, length = config.width, 13
    attention = 8 * width**2 + 4 * length * width
    assert denoiser_flops(config, cached=True) == config.num_layers * length * (attention + 48 * width**2)
    router = 2 * (2 * width**2 + 2 * width * 4)
    assert denoiser_flops(config, batch=2) == 2 * (
        denoiser_flops(config, cached=True) + config.num_layers * router
    )
    dense = load_model("testbed:mode-dense-large").config
    assert denoiser_flops(dense) == dense.num_layers * length * (attention + 96 * width**2)


def test_shipped_models_are_a_mixture_and_its_dense_counterparts():
    sizes = {
        name: sum(p.numel() for p in load_model(f"testbed:{name}").denoiser.parameters())
        for name in testbed_models()
    }
    assert set(sizes) == {"mode", "mode-dense-large", "mode-dense-small"}
    assert sizes["mode-dense-large"] == pytest.approx(sizes["mode"], rel=0.06)
    assert sizes["mode-dense-small"] < 0.6 * sizes["mode"]
