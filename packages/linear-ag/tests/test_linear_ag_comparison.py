"""Comparing policies on one's own model: names, calls, likeness to full guidance."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.linear_ag import (
    AdaptiveGuidance,
    FixedPolicy,
    IntervalGuidance,
    LinearGuidance,
    Sampling,
)
from noiseworks.linear_ag.comparison import compare_policies, image_grid
from noiseworks.linear_ag.linear import fit_from_gram, gram_matrix
from noiseworks.linear_ag.naming import Ingredients, named_policy
from noiseworks.linear_ag.policies import ReuseGuidance

T = 4


def given():
    cond, uncond = torch.randn(2, T, 2, 9, generator=torch.Generator().manual_seed(0))
    return Ingredients(T, AdaptiveGuidance(threshold=0.9), fit_from_gram(gram_matrix(cond, uncond), T))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("ag", AdaptiveGuidance(threshold=0.9)),
        ("ag:0.8", AdaptiveGuidance(threshold=0.9, decay=0.8)),
        ("cfg", FixedPolicy(actions="2222")),
        ("cond", FixedPolicy(actions="1111")),
        ("alternating", FixedPolicy(actions="2121")),
        ("2014", FixedPolicy(actions="2014")),
        ("first:0.5", IntervalGuidance(stop=0.5)),
        ("last:0.25", IntervalGuidance(start=0.75)),
        ("interval:0.25-0.75", IntervalGuidance(start=0.25, stop=0.75)),
        ("reuse:3", ReuseGuidance(every=3)),
        ("reuse:3-0.25", ReuseGuidance(every=3, warm=0.25)),
    ],
)
def test_names_are_policies(name, policy):
    assert named_policy(name, given()) == policy


@pytest.mark.parametrize(("name", "actions"), [("linear", "2311"), ("linear-all", "2323"), ("2331", "2331")])
def test_names_of_linear_policies(name, actions):
    found = named_policy(name, given())
    assert isinstance(found, LinearGuidance)
    assert found.actions == actions
    with pytest.raises(InputError, match="--coefs"):
        named_policy(name, Ingredients(T))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ag:",
        "ag:2",
        "first",
        "first:2",
        "first:x",
        "interval:0.5",
        "reuse:0",
        "reuse:2-",
        "reuse:2-1.5",
        "last:-1",
        "22",
        "a:b",
        "²²²²",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError):
        named_policy(name, given())


def test_full_guidance_has_ratio_one_and_every_policy_its_calls():
    pipe = tiny_pipeline("sd")
    prompts = ["a red circle", "a blue square", "a green cross"]
    policies = {
        "again": (T, AdaptiveGuidance(threshold=2.0)),
        "fewer": (2, FixedPolicy(actions="22")),
        "half": (T, FixedPolicy(actions="2211")),
    }
    scores, images = compare_policies(pipe, prompts, Sampling(T, 4.0, batch_size=2), policies)
    full, again, fewer, half = scores
    assert [row.policy for row in scores] == ["cfg", "again", "fewer", "half"]
    assert [row.calls for row in scores] == [8, 8, 4, 6]
    assert (full.time_ratio, full.ssim) == (1.0, pytest.approx(1.0))
    assert again.psnr == full.psnr > 100 > half.psnr  # equal images, up to the measure's floor
    assert fewer.steps == 2
    assert full.peak_mib is None
    assert max(fewer.ssim, half.ssim) < 1 - 1e-4
    assert image_grid(images).shape == (4 * 32, 2 * 32, 3)
