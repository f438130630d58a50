"""The claim's bookkeeping without drawing anything; composing with another method on tiny sizes."""

from pathlib import Path
from types import SimpleNamespace

import torch
from noiseworks.bench import image_host
from noiseworks.bench.claims import Context
from noiseworks.bench.compose import Composable, pair_claim
from noiseworks.bench.image_host import IMAGE_PIPELINE
from noiseworks.kits.diffusers_hosts import DenoiserHook, attach_hook
from noiseworks.linear_ag import claim, evidence
from noiseworks.linear_ag.composing import COMPOSABLE


def test_a_batch_gives_one_wall_clock_value_and_a_prompt_one_of_each_other(monkeypatch):
    def draw_batch(pipe, policy, captions, seed, steps):
        count = len(captions)
        return torch.zeros(count, 4, 8, 8), torch.zeros(count, 3, 32, 32), [steps] * count

    plan = SimpleNamespace(policies={arm.name: None for arm in claim.ARMS})
    monkeypatch.setattr(evidence, "load", lambda *key: None)
    monkeypatch.setattr(evidence, "calibrated", lambda *key: plan)
    monkeypatch.setattr(evidence, "draw_batch", draw_batch)
    prompts, others = evidence.BATCH + 3, evidence.BATCH
    sizes = {"prompts": prompts, "others": others, "calibration": 1}
    context = Context("laptop", sizes, None, "cpu", Path(), lambda *step: None)
    shared = claim.prepare(5, context)
    for arm in claim.ARMS:
        main = arm.name in evidence.MAIN
        metrics = evidence.metrics_of(arm.name, shared)
        assert len(metrics["seconds"]) == (2 if main else 1)
        for name in ("calls", "score", "ssim", "latent_error"):
            assert len(metrics[name]) == (prompts if main else others)


def test_composed_with_another_hook_only_its_own_calls_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(image_host, "STEPS", 6)
    other = Composable("passing", IMAGE_PIPELINE, lambda pipe: attach_hook(DenoiserHook(pipe), "passing"))
    pair = pair_claim(COMPOSABLE, other)
    context = Context("smoke", {"prompts": 2}, None, "cpu", tmp_path, lambda *step: None)
    shared = pair.prepare(500, context)
    measured = {arm.name: pair.run(arm.name, shared, context).metrics for arm in pair.arms}
    assert measured["none"]["calls"] == measured["passing"]["calls"] == [12.0]
    assert measured["linear-ag"]["calls"] == measured["both"]["calls"]
    assert 7 <= measured["both"]["calls"][0] < 12
    assert measured["both"]["score"] == measured["linear-ag"]["score"]
    assert pair.run("none", shared, context).metrics["calls"] == [12.0]
